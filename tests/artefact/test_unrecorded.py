"""A low-rank model without its pela.json is read by its weights, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from generated_text import save_model
from safetensors.torch import load_file, save_file
from tied_checkpoints import checkpoint, logits
from timm.models import _hub

import pelacli
from pelacli.artefact import loading
from pelacli.errors import RequestError
from pelacli.models import opening


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("T5ForConditionalGeneration", "apart"),
        ("GPT2LMHeadModel", "apart"),
        ("LlamaForCausalLM", "tied"),
        ("BertForMaskedLM", "tied"),
        ("AlbertForMaskedLM", "apart"),
        ("MarianMTModel", "tied"),
    ],
)
def test_what_save_pretrained_writes_of_a_loaded_artefact_gives_the_same_outputs(
    name, stored, tmp_path
):
    model = loading.open(str(checkpoint(name, tmp_path / "model", stored, True)))[0].module
    pelacli.decompose(model, 0.6, scope="layers")
    expected = logits(model)
    pelacli.save(model, tmp_path / "a")
    pelacli.load(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b" / "pela.json").exists()
    assert torch.equal(logits(pelacli.load(tmp_path / "b")), expected)
    pelacli.save(pelacli.load(tmp_path / "b"), tmp_path / "c")  # an artefact again
    again = loading.load(tmp_path / "c")
    assert torch.equal(logits(again.module), expected)
    before = loading.load(tmp_path / "a").manifest
    assert again.manifest.params == before.params
    ranks = [{row.name: row.rank for row in m.layers} for m in (again.manifest, before)]
    assert ranks[0] == ranks[1]


def test_shards_without_a_record_are_read(tmp_path):
    path = checkpoint("LlamaForCausalLM", tmp_path / "model", "tied", True)
    model = loading.open(str(path))[0].module
    pelacli.decompose(model, 0.6, scope="layers")
    model.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 1
    assert torch.equal(logits(pelacli.load(tmp_path / "b")), logits(model))


def test_what_timm_saves_of_a_loaded_artefact_gives_the_same_outputs(artefact, tmp_path):
    model = pelacli.load(artefact)
    _hub.save_for_hf(model, tmp_path / "b", safe_serialization=True)
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(pelacli.load(tmp_path / "b")(x), model(x))


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "BertForMaskedLM"])
def test_save_pretrained_into_an_artefact_leaves_an_artefact(name, tmp_path):
    model = loading.open(str(checkpoint(name, tmp_path / "model", "tied", True)))[0].module
    pelacli.decompose(model, 0.6, scope="layers")
    pelacli.save(model, tmp_path / "a")
    changed = pelacli.load(tmp_path / "a")
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.5)
    changed.save_pretrained(tmp_path / "a")
    assert torch.equal(logits(pelacli.load(tmp_path / "a")), logits(changed))


def test_weights_of_two_models_in_one_directory_are_refused(artefact):
    """As where a model is saved in shards beside one file of weights."""
    shutil.copy("a/model.safetensors", "a/model-00001-of-00001.safetensors")
    with pytest.raises(RequestError, match=r"a/model\.safetensors: \S+: is in model-00001-of-"):
        pelacli.load("a")


def test_commands_take_an_artefact_without_its_record(pela, artefact):
    code, before, err = pela("report", "a", "--json")
    assert code == 0, err
    (artefact / "pela.json").unlink()
    code, after, err = pela("report", "a", "--json")
    assert code == 0, err
    ranks, ranks_before = (
        [(layer["name"], layer["rank"]) for layer in json.loads(text)[0]["layers"]]
        for text in (after, before)
    )
    assert ranks == ranks_before
    code, _, err = pela("eval", "a", "--weights", "random", "--data", "x")
    assert (code, "leave --weights out" in err) == (2, True)
    code, _, err = pela("decompose", "a", "--ratio", "0.5", "-o", "b")
    assert (code, Path("b").exists()) == (2, False)
    assert "a: is low-rank already" in err
    for name in ("a/model.safetensors", "a"):
        arguments = ("--arch", "test_vit") if name.endswith("s") else ("--weights", "x.safetensors")
        code, _, err = pela("decompose", name, *arguments, "--ratio", "0.5", "-o", "b")
        assert (code, len(err.strip().splitlines()), Path("b").exists()) == (2, 1, False), err


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (".up.weight", r"a/model\.safetensors: blocks\.\S+\.down\.weight: the model has no such"),
        ("norm.weight", r"a: its weights lack \S*norm\.weight"),
    ],
)
def test_a_tensor_that_is_missing_without_a_record_is_named(artefact, part, says):
    (artefact / "pela.json").unlink()
    tensors = load_file("a/model.safetensors")
    name = next(key for key in tensors if key.endswith(part))
    save_file({k: v for k, v in tensors.items() if k != name}, "a/model.safetensors")
    with pytest.raises(RequestError, match=says):
        pelacli.load("a")


def test_a_model_with_layers_called_down_and_up_is_none_of_these(tmp_path):
    """Adapters have such layers beside dense ones."""
    from pelacli.models.weight_files import factor_ranks

    assert factor_ranks({"a.down.weight": (2, 8), "a.up.weight": (8, 2)}) == {"a": 2}
    dense_too = {"a.down.weight": (2, 8), "a.up.weight": (8, 2), "a.weight": (8, 8)}
    others = {"b.down.weight": (2, 8), "b.up.weight": (8, 3), "c.down.weight": (2, 8)}
    assert factor_ranks(dense_too | others) == {}
    assert opening.open(str(save_model("bert", "", tmp_path / "m"))).params > 0
    model = timm.create_model("test_vit", num_classes=3)
    _hub.save_for_hf(model, tmp_path / "t", safe_serialization=True)
    assert loading.open(str(tmp_path / "t"))[1] is None
