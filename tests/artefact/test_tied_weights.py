"""What shares a tensor is what the weights say: not the configuration, and through every step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from generated_text import counted, save_model
from safetensors.torch import load_file, save_file
from tied_checkpoints import FAMILIES, checkpoint, logits
from torch import nn

import pelacli
from pelacli.artefact import loading
from pelacli.errors import RequestError
from pelacli.exports import dense as export_dense
from pelacli.lowrank import find
from pelacli.models import heads

CASES = [
    *((name, "apart", True) for name in FAMILIES),
    ("T5ForConditionalGeneration", "tied", False),
    ("BartForConditionalGeneration", "tied", True),
    ("LlamaForCausalLM", "apart", None),
    ("GPT2LMHeadModel", "tied", None),
]


@pytest.mark.parametrize(("name", "stored", "says"), CASES)
def test_an_artefact_gives_the_outputs_of_the_module_that_was_saved(name, stored, says, tmp_path):
    path = checkpoint(name, tmp_path / "model", stored, says)
    plain = getattr(transformers, name).from_pretrained(path).eval()
    opened, _ = loading.open(str(path))
    module = opened.module
    assert torch.equal(logits(module), logits(plain))
    pelacli.decompose(module, 0.6, scope="layers")
    expected = logits(module)
    pelacli.save(module, tmp_path / "a")
    back = pelacli.load(tmp_path / "a")
    assert torch.equal(logits(back), expected)
    pelacli.save(back, tmp_path / "b")
    assert torch.equal(logits(pelacli.load(tmp_path / "b")), expected)


def test_healing_and_fine_tuning_leave_a_head_of_its_own_apart(pela, here):
    save_model("gpt2", "CausalLM", here / "model", tie_word_embeddings=False)
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    stored = load_file("model/model.safetensors")
    Path("texts.txt").write_text("\n".join(text for text, _ in counted(40, 0)))
    Path("r.toml").write_text(
        'model = "model"\noutput = "run"\ntask = "language-modelling"\n'
        '[data]\ndataset = "texts.txt"\nbatch_size = 8\n'
        '[decompose]\nratio = 0.6\nscope = "layers"\n[pretrain]\nsteps = 1\nlr = 1e-4\n'
        "[finetune]\nsteps = 1\nlr = 1e-4\n"
    )
    code, _, err = pela("run", "r.toml")
    assert code == 0, err
    for step in ("decompose", "pretrain", "finetune"):
        back = loading.load(Path("run") / step).module
        for name in ("lm_head.weight", "transformer.wte.weight"):
            weight = back.get_parameter(name)
            assert torch.allclose(weight, stored[name], atol=1e-3), (step, name)


def test_another_head_keeps_the_embeddings_that_the_checkpoint_has(tmp_path):
    opened, _ = loading.open(str(checkpoint("BertForMaskedLM", tmp_path / "m", "apart", True)))
    head = opened.module.cls.predictions.decoder.weight
    words = opened.module.bert.embeddings.word_embeddings.weight
    module = heads.with_head(opened, "MaskedLM", 0).module
    assert module.cls.predictions.decoder.weight is head
    assert module.bert.embeddings.word_embeddings.weight is words


def test_an_artefact_without_a_record_of_ties_is_read_by_what_its_file_holds(tmp_path):
    """Artefacts that an older pela wrote."""
    path = checkpoint("GPT2LMHeadModel", tmp_path / "model", "apart", True)
    opened, _ = loading.open(str(path))
    pelacli.decompose(opened.module, 0.6, scope="layers")
    pelacli.save(opened.module, tmp_path / "a")
    record = json.loads((tmp_path / "a" / "pela.json").read_text())
    del record["tied"]
    (tmp_path / "a" / "pela.json").write_text(json.dumps(record))
    assert torch.equal(logits(pelacli.load(tmp_path / "a")), logits(opened.module))


def test_two_values_for_one_layer_are_refused_by_name(tmp_path):
    """ALBERT runs one group of layers many times; a file may hold other values for each."""
    from pelacli.models.weight_files import load_strictly, stored_tensors

    twice = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False)})
    twice["b"] = twice["a"]
    save_file({"a.weight": torch.eye(2), "b.weight": torch.ones(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(RequestError, match=r"b\.weight: differs from a\.weight, and the model has"):
        load_strictly(twice, stored_tensors([tmp_path / "w.safetensors"]), tmp_path)
    save_file({"a.weight": torch.eye(2), "b.weight": torch.eye(2)}, tmp_path / "w.safetensors")
    load_strictly(twice, stored_tensors([tmp_path / "w.safetensors"]), tmp_path)
    assert torch.equal(twice["b"].weight, torch.eye(2))


def flat(model):
    """As torch's flat parameters are: all are views of one memory."""
    parameters = list(model.parameters())
    memory, start = torch.cat([p.data.flatten() for p in parameters]), 0
    for parameter in parameters:
        parameter.data = memory[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()


def tied_by_memory(model):
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.data)


def a_part(model):
    model.transformer.h[0].ln_1.weight.data = torch.randn(100, 32)[5]


@pytest.mark.parametrize("change", [flat, tied_by_memory, a_part])
def test_parameters_that_share_memory_come_back_each_with_its_values(change, tmp_path):
    torch.manual_seed(0)
    _, settings = FAMILIES["GPT2LMHeadModel"]
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)).eval()
    change(model)
    pelacli.decompose(model, 0.6, scope="layers")
    pelacli.save(model, tmp_path / "a")
    assert torch.equal(logits(pelacli.load(tmp_path / "a")), logits(model))


@pytest.mark.parametrize("stored", ["tied", "apart"])
def test_a_folded_gpt2_is_read_by_transformers_to_the_same_outputs(stored, tmp_path):
    """Its layers store weights the other way round, which no square one would betray."""
    path = checkpoint("GPT2LMHeadModel", tmp_path / "model", stored, True)
    model = loading.open(str(path))[0].module
    pelacli.decompose(model, 0.6, scope="layers", include=[r"attn\.c_proj"])
    expected = logits(model)
    export_dense.fold(model)
    assert not find.low_rank_layers(model)
    model.save_pretrained(tmp_path / "plain")
    plain = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "plain").eval()
    assert torch.allclose(logits(plain), expected, atol=1e-5)
