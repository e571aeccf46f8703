"""After ``import pelacli``, transformers opens an artefact by itself; without it, it refuses."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import timm
import torch
import transformers
from generated_text import save_model
from safetensors.torch import load_file, save_file
from tied_checkpoints import checkpoint, logits
from transformers.quantizers import auto

import pelacli
from pelacli.artefact import loading
from pelacli.exports.dense import fold
from pelacli.lowrank import find
from pelacli.manifest import low_rank_config
from pelacli.models.hf import quantizer

IDS = torch.arange(3, 13)[None]
FORMS = ("factors", "pivots")
# Older releases of transformers say nothing of a shape that does not fit, and pela does.
WRONG_SHAPE = r"ignore_mismatched_sizes|output\.dense\.\w.*weights have .*configuration says"


def compressed(path: Path, to: Path, form: str = "pivots", ratio: float = 0.6) -> torch.nn.Module:
    """The model of a directory, low-rank and saved as an artefact."""
    model = loading.open(str(path))[0].module
    pelacli.decompose(model, ratio, scope="layers", form=form)
    pelacli.save(model, to)
    return pelacli.load(to)


def same_tensors(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    one, other = ours.state_dict(), theirs.state_dict()
    equal = (torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype
             for name in one)  # fmt: skip
    return one.keys() == other.keys() and all(equal)


def forms(model: torch.nn.Module) -> dict[str, tuple[str, int]]:
    return {name: (la.form, la.rank) for name, la in find.low_rank_layers(model).items()}


@pytest.mark.parametrize(
    ("name", "stored", "form"),
    [
        ("T5ForConditionalGeneration", "tied", "pivots"),
        ("T5ForConditionalGeneration", "apart", "factors"),
        ("GPT2LMHeadModel", "tied", "pivots"),
        ("LlamaForCausalLM", "tied", "factors"),
        ("LlamaForCausalLM", "apart", "pivots"),
        ("BertForMaskedLM", "tied", "pivots"),
        ("AlbertForMaskedLM", "tied", "factors"),
        ("MarianMTModel", "tied", "pivots"),
    ],
)
def test_a_class_of_transformers_loads_an_artefact_bitwise(name, stored, form, tmp_path):
    ours = compressed(checkpoint(name, tmp_path / "model", stored, stored == "tied"),
                      tmp_path / "a", form)  # fmt: skip
    theirs, info = getattr(transformers, name).from_pretrained(
        tmp_path / "a", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert forms(theirs) == forms(ours) != {}
    assert {kind for kind, _ in forms(theirs).values()} == {form}
    assert same_tensors(ours, theirs)
    torch.testing.assert_close(logits(theirs), logits(ours))  # memory's alignment may round


@pytest.mark.parametrize(
    ("kind", "opened_as", "form"),
    [
        ("MaskedLM", "", "pivots"),
        ("SequenceClassification", "", "factors"),
        ("SequenceClassification", "SequenceClassification", "pivots"),
        ("", "SequenceClassification", "pivots"),
    ],
)
def test_classes_of_one_family_open_each_others_artefacts(kind, opened_as, form, tmp_path):
    ours = compressed(save_model("bert", kind, tmp_path / "model"), tmp_path / "a", form)
    cls = getattr(transformers, f"AutoModelFor{opened_as}" if opened_as else "AutoModel")
    theirs = cls.from_pretrained(tmp_path / "a")
    assert len(forms(theirs.base_model)) == len(forms(ours.base_model)) > 0
    pooler = {name for name in ours.base_model.state_dict() if "pooler" in name}
    for name, tensor in theirs.base_model.state_dict().items():
        if pooler or "pooler" not in name:  # which masked language models have not
            assert torch.equal(tensor, ours.base_model.state_dict()[name]), name
    with torch.no_grad():
        states = (m.base_model(IDS).last_hidden_state for m in (ours, theirs))
        torch.testing.assert_close(*states)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_casts_all_but_the_order_of_pivots(dtype, tmp_path):
    ours = compressed(save_model("llama", "CausalLM", tmp_path / "model"), tmp_path / "a")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=dtype)
    assert same_tensors(ours.to(dtype), theirs)
    assert theirs.float().half().dtype == torch.float16  # no quantised model: it may be cast


def test_half_precision_is_kept(tmp_path):
    path = save_model("llama", "CausalLM", tmp_path / "model")
    transformers.AutoModelForCausalLM.from_pretrained(path, dtype="bfloat16").save_pretrained(path)
    ours = compressed(path, tmp_path / "a")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert theirs.dtype == torch.bfloat16
    assert same_tensors(ours, theirs)


def test_pipelines_and_generation_take_an_artefact(tmp_path):
    ours = compressed(save_model("gpt2", "CausalLM", tmp_path / "model"), tmp_path / "a")
    pipe = transformers.pipeline("text-generation", str(tmp_path / "a"))
    assert same_tensors(ours, pipe.model)
    mine = ours.generate(IDS, max_new_tokens=5, do_sample=False)
    assert torch.equal(pipe.model.generate(IDS, max_new_tokens=5, do_sample=False), mine)
    compressed(save_model("bert", "SequenceClassification", tmp_path / "m2"), tmp_path / "b")
    answers = transformers.pipeline("text-classification", str(tmp_path / "b"))("w1 k2 .")
    assert 0 < answers[0]["score"] < 1


@pytest.mark.parametrize("form", FORMS)
def test_what_save_pretrained_writes_of_it_opens_again(form, tmp_path):
    ours = compressed(save_model("llama", "CausalLM", tmp_path / "model"), tmp_path / "a", form)
    first = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    first.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    assert not (tmp_path / "b" / "pela.json").exists()
    second = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert same_tensors(second, ours)
    assert same_tensors(pelacli.load(tmp_path / "b"), ours)
    a, b = (json.loads((tmp_path / name / "config.json").read_text()) for name in "ab")
    assert a["quantization_config"] == b["quantization_config"]
    assert a["fusion_config"] == b["fusion_config"]


@pytest.mark.parametrize("source", ["decomposed", "loaded"])
def test_save_pretrained_of_a_model_in_memory_opens_again(source, tmp_path):
    path = save_model("bert", "SequenceClassification", tmp_path / "model")
    ours = compressed(path, tmp_path / "a")
    if source == "decomposed":
        ours = transformers.AutoModelForSequenceClassification.from_pretrained(path)
        pelacli.decompose(ours, 0.6)
    ours.save_pretrained(tmp_path / "b")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "b")
    assert forms(theirs) == forms(ours) != {}
    assert same_tensors(theirs, ours)


def test_a_step_of_trainer_and_what_it_saves(tmp_path):
    compressed(save_model("bert", "SequenceClassification", tmp_path / "model"), tmp_path / "a")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "a")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = [{"input_ids": IDS[0].tolist(), "labels": label} for label in (0, 1)]
    arguments = transformers.TrainingArguments(
        tmp_path / "t", max_steps=1, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    names = find.low_rank_layers(model)
    assert {f"{n}.{part}.weight" for n in names for part in ("down", "up")} <= changed
    trainer.save_model(tmp_path / "b")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "b")
    assert same_tensors(again, model)


def test_a_sentence_encoder_opens_and_saves_in_its_own_library(tmp_path):
    sentences = pytest.importorskip("sentence_transformers")
    model = sentences.SentenceTransformer(str(save_model("bert", "", tmp_path / "m")))
    pelacli.decompose(model, 0.6)  # answers with its encoder's configuration, under other names
    model.save(str(tmp_path / "b"))
    again = sentences.SentenceTransformer(str(tmp_path / "b"))
    assert len(forms(again)) == len(forms(model)) > 0
    assert (again.encode(["w1 k2 ."]) == model.encode(["w1 k2 ."])).all()


@pytest.mark.parametrize("form", FORMS)
def test_an_artefact_of_a_sentence_encoder_trains_and_saves_in_its_own_library(form, tmp_path):
    """Loaded, encoded, trained a step, saved, and opened again: by their trainer, and by pela."""
    sentences = pytest.importorskip("sentence_transformers")
    from datasets import Dataset
    from sentence_transformers import losses

    dense = sentences.SentenceTransformer(str(save_model("bert", "", tmp_path / "m")))
    dense.save(str(tmp_path / "s"))
    ours = compressed(tmp_path / "s", tmp_path / "a", form)
    model = sentences.SentenceTransformer(str(tmp_path / "a"), device="cpu")
    assert list(forms(model).values()) == list(forms(ours).values())
    texts = ["w1 k2 .", "w3"]
    first = model.encode(texts)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arguments = sentences.SentenceTransformerTrainingArguments(
        str(tmp_path / "t"), max_steps=1, report_to=[], use_cpu=True, save_strategy="no"
    )
    sentences.SentenceTransformerTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_dict({"anchor": texts, "positive": ["w1 k3 .", "w4 k5"]}),
        loss=losses.MultipleNegativesRankingLoss(model),
    ).train()
    changed = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    used = [name for name in find.low_rank_layers(model) if "pooler" not in name]
    assert {f"{name}.{part}.weight" for name in used for part in ("up", "down")} <= changed
    model.save(str(tmp_path / "b"))
    model.eval()
    trained = model.encode(texts)
    assert abs(trained - first).max() > 0
    again = sentences.SentenceTransformer(str(tmp_path / "b"), device="cpu")
    assert forms(again) == forms(model)
    assert (again.encode(texts) == trained).all()
    assert same_tensors(pelacli.load(tmp_path / "b"), again[0].auto_model)


def test_a_dense_model_of_the_same_layers_says_nothing_of_them(tmp_path):
    model = compressed(save_model("bert", "", tmp_path / "model"), tmp_path / "a")
    fold(model)
    model.save_pretrained(tmp_path / "b")
    pelacli.save(model, tmp_path / "c")
    for name in ("b", "c"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert not config.keys() & {"quantization_config", "fusion_config"}
        again = transformers.AutoModel.from_pretrained(tmp_path / name)
        assert same_tensors(again, model)


def test_an_artefact_of_an_older_pela_loads_as_before(tmp_path):
    ours = compressed(save_model("bert", "", tmp_path / "model"), tmp_path / "a")
    without_what_config_says(tmp_path / "a")
    assert same_tensors(pelacli.load(tmp_path / "a"), ours)


def without_what_config_says(path: Path) -> None:
    change_config(path, lambda config: [config.pop(k) for k in
                                        ("quantization_config", "fusion_config")])  # fmt: skip


def change_config(path: Path, change) -> None:
    file = path / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def test_timm_models_open_in_transformers_wrapper(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=7).eval()
    pelacli.decompose(model, 0.6)
    pelacli.save(model, tmp_path / "a")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "a")
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x).logits, model(x))


def dropped_tensor(path: Path) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.layer.1.output.dense.down.weight"]
    save_file(tensors, file, {"format": "pt"})


def dropped_order(path: Path) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    del tensors["encoder.layer.0.output.dense.order"]
    save_file(tensors, file, {"format": "pt"})


def in_config(**changes):
    def change(path: Path) -> None:
        layer = changes.pop("layer", {})
        change_config(path, lambda config: config["quantization_config"].update(changes))
        change_config(path, lambda config: config["quantization_config"]["pivots"].update(layer))

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (dropped_tensor, r"lack encoder\.layer\.1\.output\.dense\.down\.weight; take the config"),
        (dropped_order, r"lack encoder\.layer\.0\.output\.dense\.order; take the config"),
        (in_config(layer={"encoder.layer.0.output.dense": 3}), WRONG_SHAPE),
        (in_config(layer={"encoder.layer.0.output.dense": "3"}), "'3' is no rank"),
        (in_config(layer={"embeddings.word_embeddings": 3}), "not a layer that can be factorised"),
        (in_config(blocks={}), "knows no 'blocks'"),
    ],
)
def test_what_does_not_fit_is_an_error_of_transformers_load(damage, says, tmp_path):
    compressed(save_model("bert", "", tmp_path / "model"), tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises((ValueError, RuntimeError), match=says):
        transformers.AutoModel.from_pretrained(tmp_path / "a")


def test_a_tensor_of_another_shape_is_refused_where_transformers_lets_it_pass(tmp_path):
    config = compressed(save_model("bert", "", tmp_path / "model"), tmp_path / "a").config
    model = transformers.AutoModel.from_config(config)
    loading_it = quantizer.LowRankQuantizer(quantizer.LowRankConfig())
    loading_it._process_model_before_weight_loading(model)
    model.pooler.dense.bias = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"pooler\.dense\.bias: the weights have \(2,\), the conf"):
        loading_it.postprocess_model(model)


@pytest.mark.parametrize("call", ["update_attn_implementation", "update_tp_plan"])
def test_whatever_a_release_of_transformers_calls_before_it_builds_the_key_is_gone(call):
    config = transformers.BertConfig(fusion_config=dict(low_rank_config.GUARD))
    config.model_args = {"num_classes": 7, "drop_rate": 0.1}
    config = getattr(quantizer.LowRankQuantizer(quantizer.LowRankConfig()), call)(config)
    assert not hasattr(config, "fusion_config")
    assert config.model_args == {"drop_rate": 0.1}


def test_a_layer_under_a_name_that_the_class_does_not_have_is_not_left_random(tmp_path):
    compressed(save_model("bert", "", tmp_path / "model"), tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    old, new = "encoder.layer.0.output.dense", "tower.layer.0.output.dense"
    save_file({n.replace(old, new): t for n, t in load_file(file).items()}, file, {"format": "pt"})
    change_config(
        tmp_path / "a",
        lambda c: c["quantization_config"]["pivots"].update(
            {new: c["quantization_config"]["pivots"].pop(old)}
        ),
    )
    with pytest.raises(ValueError, match=rf"{old}: BertModel has it under another name .*tower"):
        transformers.AutoModel.from_pretrained(tmp_path / "a")


def test_a_dense_model_can_not_be_loaded_as_one_of_pela(tmp_path):
    path = save_model("bert", "", tmp_path / "model")
    config = auto.AutoQuantizationConfig.from_dict({"quant_method": "pela"})
    with pytest.raises(ValueError, match="pela does require the model to be pre-quantized"):
        transformers.AutoModel.from_pretrained(path, quantization_config=config)


def test_without_the_import_transformers_refuses_with_the_remedy(tmp_path, monkeypatch):
    ours = compressed(save_model("bert", "", tmp_path / "model"), tmp_path / "a")
    ours.save_pretrained(tmp_path / "b")
    for mapping in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.delitem(mapping, "pela")
    for name in ("a", "b"):
        for cls in (transformers.AutoModel, transformers.AutoModelForSequenceClassification):
            with pytest.raises(ValueError, match=r"low-rank layers of pela; run `import pelacli`"):
                cls.from_pretrained(tmp_path / name)
    assert same_tensors(pelacli.load(tmp_path / "a"), ours)  # which needs neither


def test_importing_pela_again_registers_nothing_twice():
    before = auto.AUTO_QUANTIZER_MAPPING["pela"]  # which nothing but the import has put in
    importlib.reload(pelacli)
    assert auto.AUTO_QUANTIZER_MAPPING["pela"] is before
