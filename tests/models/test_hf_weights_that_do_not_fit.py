"""What a directory of transformers holds and its class does not take, and the other way round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from refusals import refused as refused
from safetensors.torch import load_file, save_file

from pelacli.errors import RequestError
from pelacli.models import opening

WIDTHS = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": 20, "max_position_embeddings": 12,
}  # fmt: skip
LAYER = "bert.encoder.layer.0.intermediate.dense.weight"


def model(name="BertForSequenceClassification", **more):
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    return cls(cls.config_class(**WIDTHS, **more)).eval()


@pytest.fixture(scope="module")
def classifier() -> transformers.PreTrainedModel:
    return model(num_labels=3)


def save(module, change=lambda tensors: tensors, shards=False, **config) -> Path:
    """The directory m: a model's weights, changed, and its config.json, with some keys changed."""
    folder = Path("m")
    module.save_pretrained(folder, max_shard_size="8KB" if shards else "50GB")
    for file in folder.glob("*.safetensors"):
        tensors = change(load_file(file))
        save_file({name: t.clone() for name, t in tensors.items()}, file)
    written = json.loads((folder / "config.json").read_text()) | config
    kept = {key: value for key, value in written.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def opened(capsys, **how):
    """(the tensors as they were opened, the class, standard error)."""
    capsys.readouterr()
    module = opening.open("m", **how).module
    return module.state_dict(), type(module).__name__, capsys.readouterr().err


def same(tensors, module):
    return all(tensors[name].equal(tensor) for name, tensor in module.state_dict().items())


def renamed(front):
    return lambda tensors: {front + name: t for name, t in tensors.items()}


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize(
    "wrapper",
    ["module.", "_orig_mod.", "module._orig_mod.", "model.", "model_ema.", "ema.", "module.model."],
)
def test_what_a_wrapper_put_in_front_is_taken_off_with_a_word(
    capsys, here, classifier, wrapper, shards
):
    save(classifier, renamed(wrapper), shards)
    tensors, _, err = opened(capsys)
    assert same(tensors, classifier)
    assert "note: m: took " in err
    for part in wrapper.rstrip(".").split("."):
        assert f"{part}." in err


def test_a_wrapper_around_names_that_begin_like_it(capsys, here):
    """Llama's own names begin with "model."."""
    for tied in (True, False):
        llama = model("LlamaForCausalLM", tie_word_embeddings=tied)
        for wrapper in ("", "model.", "module.", "model._orig_mod."):
            save(llama, renamed(wrapper))
            tensors, _, err = opened(capsys)
            assert same(tensors, llama)
            assert ("took" in err) == (wrapper not in ("", "model."))  # transformers does that


def test_the_commands_take_it_off_too(pela, here, classifier):
    save(classifier, renamed("module."))
    for command in (["decompose", "m", "--ratio", "0.8", "-o", "a"], ["report", "m"]):
        code, _, err = pela(*command)
        assert code == 0, err
        assert "m: took module. off the names of the tensors" in err
    kept = load_file("a/model.safetensors")
    assert kept["classifier.weight"].equal(classifier.classifier.weight)


def without(*parts):
    return lambda tensors: {
        name: t for name, t in tensors.items() if not any(part in name for part in parts)
    }


def plus(**more):
    return lambda tensors: tensors | {name.replace("__", "."): t for name, t in more.items()}


def as_type(dtype):
    return lambda tensors: tensors | {LAYER: tensors[LAYER].to(dtype)}


def filled(value, name=LAYER):
    def change(tensors):
        tensors[name].view(-1)[5] = value
        return tensors

    return change


def more_layers(tensors):
    more = {name.replace("layer.0.", "layer.2."): t for name, t in tensors.items()}
    return tensors | more


REFUSED = {
    "nothing fits": (renamed("backbone."), {}, "holds backbone.bert.", "without 'backbone.' in"),
    "encoder. in front": (renamed("encoder."), {}, "holds encoder.bert.", "without 'encoder.' in"),
    "module.backbone.": (renamed("module.backbone."), {}, "holds module.backbone.", "config.json"),
    "two models": (
        lambda t: renamed("model.")(t) | renamed("model_ema.")(t), {}, "holds model.bert.", "place",
    ),
    "more layers": (more_layers, {}, "holds bert.encoder.layer.2.attention", "has no place"),
    "fewer by config.json": (
        lambda t: t, {"num_hidden_layers": 1}, "holds bert.encoder.layer.1.", "take the config.json"
    ),
    "more by config.json": (
        lambda t: t, {"num_hidden_layers": 3}, "lacks bert.encoder.layer.2.", "take the config.json"
    ),
    "fewer layers": (without("layer.1."), {}, "lacks bert.encoder.layer.1.", "of BertForSequence"),
    "one bias": (without("layer.1.output.dense.bias"), {}, "lacks bert.encoder.layer.1.", "of B"),
    "no head": (without("classifier"), {}, "lacks classifier.bias, classifier.weight", "BertModel"),
    "an extra tensor": (plus(extra=torch.ones(2)), {}, "holds extra, for which Bert", "take"),
    "misshapen": (
        lambda t: t | {LAYER: torch.ones(8, 8)}, {}, f"{LAYER}: is [8, 8] in the weights", "take",
    ),
    "empty": (lambda t: t | {LAYER: torch.ones(0)}, {}, f"{LAYER}: is [0] in the", "take"),
    "another width": (lambda t: t, {"hidden_size": 32}, "in the weights, and ", "take"),
    "another vocabulary": (lambda t: t, {"vocab_size": 30}, "[20, 16] in the weights", "[30, 16]"),
    "no tensor": (lambda t: {}, {}, "model.safetensors: holds no tensors", "take the file"),
    "fp8 with scales": (
        plus(bert__encoder__layer__0__output__dense__weight_scale_inv=torch.ones(1, 1)), {},
        "holds bert.encoder.layer.0.output.dense.weight_scale_inv", "are quantised; take",
    ),
    "bitsandbytes": (
        plus(bert__encoder__layer__0__output__dense__SCB=torch.ones(16)), {}, ".SCB", "quantised",
    ),
    "fp8 without scales": (as_type(torch.float8_e4m3fn), {}, "stored as F8_E4M3", "bfloat16"),
    "int8": (as_type(torch.int8), {}, f"{LAYER}: is stored as I8", "bfloat16"),
    "bool": (as_type(torch.bool), {}, "stored as BOOL", "bfloat16"),
    "complex": (as_type(torch.complex64), {}, "stored as C64", "bfloat16"),
    "a LoRA in the file": (
        plus(bert__encoder__layer__0__output__dense__lora_A__weight=torch.ones(2, 32)), {},
        "lora_A", "merge the adapter",
    ),
    "NaN": (filled(float("nan")), {}, f"{LAYER} holds values that are not finite", "damaged"),
    "infinity": (filled(float("-inf")), {}, f"{LAYER} holds values that are not finite", "damaged"),
    **{
        method: (lambda t: t, {"quantization_config": {"quant_method": method}}, method, "take the")
        for method in ("gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors")
    },
    "quantised in part": (
        lambda t: t, {"text_config": {"quantization_config": {"quant_method": "awq"}}}, "awq",
        "take the checkpoint",
    ),
    "a class of somebody's": (
        lambda t: t, {"architectures": ["MyClassifier"]}, "holds classifier.bias",
        'names MyClassifier, which transformers has not; set "architectures"',
    ),
    "no class": (lambda t: t, {"architectures": ...}, "holds classifier.bias", "names no class; "),
    "no model": (lambda t: t, {"architectures": ["BertTokenizer"]}, "classifier.", "set \"arch"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(refused, here, classifier, case):
    change, config, names, remedy = REFUSED[case]
    save(classifier, change, **config)
    line = refused("report", "m")
    assert line.startswith("pela: error: m")
    assert names in line
    assert remedy in line


@pytest.mark.parametrize("case", ["nothing fits", "more layers", "fewer layers", "gptq"])
def test_it_is_refused_by_every_command(refused, here, classifier, case):
    change, config, names, _ = REFUSED[case]
    save(classifier, change, shards=True, **config)
    Path("r.toml").write_text('model = "m"\noutput = "r"\n[decompose]\nratio = "0.8"\n')
    for command in (
        ["decompose", "m", "--ratio", "0.8", "--dry-run"],
        ["decompose", "m", "--ratio", "0.8", "-o", "a"],
        ["decompose", "bert_base", "--weights", "m", "--ratio", "0.8", "-o", "a"],
        ["decompose", "r.toml"],
    ):
        assert names in refused(*command)


def test_another_number_of_classes_forgives_the_head_alone(capsys, here, classifier):
    save(classifier)
    tensors, _, err = opened(capsys, num_classes=5)
    assert tensors["classifier.weight"].shape == (5, 16)
    assert "m: classifier.bias, classifier.weight: fresh, for num_classes = 5" in err
    save(classifier, without("classifier"))
    assert "fresh, for num_classes = 5" in opened(capsys, num_classes=5)[2]
    for change in (without("layer.1."), without("pooler"), lambda t: t | {LAYER: torch.ones(8, 8)}):
        save(classifier, change)
        with pytest.raises(RequestError, match=r"m: (lacks )?bert\."):
            opening.open("m", num_classes=5)


def test_heads_of_other_tasks_are_left_out_with_a_word(capsys, here):
    """As in bert-base-uncased, which holds the head that predicts the next sentence too."""
    pretrained = model("BertForPreTraining")
    save(pretrained, architectures=["BertForMaskedLM"])
    tensors, name, err = opened(capsys)
    assert name == "BertForMaskedLM"
    assert tensors["cls.predictions.bias"].equal(pretrained.cls.predictions.bias)
    assert "left out bert.pooler.dense.bias, " in err
    assert "which BertForPreTraining has and BertForMaskedLM, the class that config.json" in err
    save(pretrained, architectures=["BertModel"])
    assert "left out cls.predictions" in opened(capsys)[2]
    save(pretrained, more_layers, architectures=["BertForMaskedLM"])
    with pytest.raises(RequestError, match=r"holds bert\.encoder\.layer\.2"):
        opening.open("m")


def test_a_class_that_transformers_has_not_is_its_encoder_where_no_head_is_lost(capsys, here):
    save(model("BertModel"), architectures=["MyEncoder"])
    _, name, err = opened(capsys)
    assert name == "BertModel"
    assert (
        err
        == "note: m: config.json names MyEncoder, which transformers has not; opened as BertModel\n"
    )


def test_a_sentence_encoder_is_opened_without_the_head_that_it_does_not_have(capsys, here):
    """As all-mpnet-base-v2, whose config.json names MPNetForMaskedLM."""
    encoder = model("MPNetModel")
    save(encoder, architectures=["MPNetForMaskedLM"])
    with pytest.raises(RequestError, match=r"lacks lm_head\.bias"):
        opening.open("m")
    kind = "sentence_transformers.models.Transformer"
    Path("m/modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}])
    )
    tensors, name, err = opened(capsys)
    assert same(tensors, encoder)
    assert name == "MPNetModel"
    assert "opened as MPNetModel, as sentence-transformers does" in err


def legacy(tensors):
    """Names that transformers itself translates or ignores."""
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for name, t in tensors.items()
    }
    return old | {"bert.embeddings.position_ids": torch.arange(12)[None]}


def test_names_that_transformers_itself_translates_or_ignores_need_no_word(
    capsys, here, classifier
):
    save(classifier, legacy)
    tensors, _, err = opened(capsys)
    assert same(tensors, classifier)
    assert err == ""
    gpt = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=8)
    )
    masks = {"h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8)}
    save(gpt, lambda t: {n.removeprefix("transformer."): x for n, x in t.items()} | masks)
    tensors, _, err = opened(capsys)
    assert same(tensors, gpt)
    assert err == ""


@pytest.mark.parametrize("front", ["", "bert."])
def test_what_the_class_computes_itself_may_be_stored_too(capsys, here, front):
    """As ``position_ids`` in older checkpoints, which transformers 5.4 reports as left over."""
    encoder = model("BertModel")
    save(encoder, lambda t: renamed(front)(t | {"embeddings.token_type_ids": torch.zeros(1, 12)}))
    tensors, _, err = opened(capsys)
    assert same(tensors, encoder)
    assert err == ""


def test_a_counter_that_no_training_changes_may_be_missing(capsys, here):
    """Older checkpoints have no num_batches_tracked; a mean that is missing is another thing."""
    torch.manual_seed(0)
    config = transformers.MobileViTConfig(
        hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16], num_attention_heads=2,
        image_size=64,
    )  # fmt: skip
    net = transformers.MobileViTForImageClassification(config).eval()
    save(net, without("num_batches_tracked"))
    tensors, _, err = opened(capsys)
    assert same(tensors, net)
    assert err == ""
    save(net, without("running_mean"))
    with pytest.raises(RequestError, match=r"lacks \S+running_mean"):
        opening.open("m")
    name = next(n for n in net.state_dict() if n.endswith("running_var"))
    for wrong in (float("nan"), float("inf"), float("-inf")):
        save(net, filled(wrong, name))
        with pytest.raises(RequestError, match="running_var holds values that are not finite"):
            opening.open("m")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("in_place", [False, True])
def test_an_adapter_is_refused_beside_the_weights_and_in_their_place(
    refused, here, classifier, file, in_place
):
    folder = save(classifier)
    if in_place:
        (folder / "model.safetensors").unlink()
        (folder / "config.json").unlink()
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, folder / file)
    for command in (["report", "m"], ["decompose", "m", "--ratio", "0.8", "-o", "a"]):
        line = refused(*command)
        assert f"m: has an adapter of peft ({file})" in line
        assert "merge it into its model first" in line


def test_a_bare_adapter_file_is_refused(refused, here):
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, "adapter_model.safetensors")
    assert "merge the adapter" in refused(
        "report", "adapter_model.safetensors", "--arch", "vit_tiny"
    )


def test_a_shard_that_is_missing_is_named(refused, here, classifier):
    folder = save(classifier, shards=True)
    sorted(folder.glob("*.safetensors"))[1].unlink()
    refused("report", "m")


def test_shards_without_their_index_are_refused(refused, here, classifier):
    save(classifier, shards=True)
    Path("m/model.safetensors.index.json").unlink()
    assert "model.safetensors" in refused("report", "m")
