"""Plain factorising of what memory has no room for: layer by layer, to the same files."""

from __future__ import annotations

import json

import generated_text
import pytest
import tied_checkpoints
import torch
import transformers
from safetensors.torch import load_file, save_file

import pelacli
from pelacli.artefact import description, loading
from pelacli.steps import lazy_factors, placing
from pelacli.system import memory


@pytest.fixture
def no_memory(monkeypatch):
    return lambda: monkeypatch.setattr(memory, "available", lambda: 0)


def content(folder):
    """Every file of an artefact; of its card and manifest what does not change by the run."""
    files = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    manifest = json.loads(files.pop("pela.json"))
    for step in manifest["history"]:
        del step["seconds"], step["recipe"]["output"]
    files["README.md"] = files["README.md"].replace(folder.name.encode(), b"OUTPUT")
    del manifest["files"]["README.md"], manifest["digest"]
    return files, manifest


def sharded(name, path, stored="apart", dtype=torch.float32):
    whole = tied_checkpoints.checkpoint(name, path / "whole", stored, stored == "tied")
    model = getattr(transformers, name).from_pretrained(whole, dtype=dtype)
    model.save_pretrained(path / "model", max_shard_size="30KB")
    assert len(list((path / "model").glob("*.safetensors"))) > 1
    return path / "model"


@pytest.mark.parametrize(
    ("name", "stored", "lazily"),
    [
        ("GPT2LMHeadModel", "tied", True),
        ("LlamaForCausalLM", "apart", True),
        ("BartForConditionalGeneration", "apart", True),
        ("BertForMaskedLM", "tied", False),  # transformers copies a bias of it
    ],
)
def test_layer_by_layer_gives_the_same_files(pela, here, no_memory, name, stored, lazily):
    model = sharded(name, here, stored)
    assert pela("decompose", model, "--ratio", "0.85", "-o", "whole-out")[0] == 0
    no_memory()
    code, _, err = pela("decompose", model, "--ratio", "0.85", "-o", "lazy-out")
    assert code == 0
    assert ("layer by layer" in err) == lazily
    assert content(here / "lazy-out") == content(here / "whole-out")
    pelacli.load(here / "lazy-out")


@pytest.fixture
def lazily(monkeypatch):
    """Models are opened lazily, though memory suffices for all else."""
    return lambda: monkeypatch.setattr(placing, "lazy_above", lambda step: 0)


TEXTS = "\n".join(f"w{i % 24} k{i % 7} w{i % 5} not w{i % 11} k{i % 13} ." for i in range(60))


@pytest.mark.parametrize(
    ("name", "dtype", "options"),
    [
        ("GPT2LMHeadModel", torch.float32, ()),
        ("LlamaForCausalLM", torch.bfloat16, ()),
        ("LlamaForCausalLM", torch.float32, ("--no-correct",)),
        ("LlamaForCausalLM", torch.float32, ("--include", "q_proj|up_proj", "--scope", "layers")),
    ],
)
def test_calibrated_block_by_block_gives_the_same_model(pela, here, lazily, name, dtype, options):
    model = sharded(name, here, dtype=dtype)
    generated_text.tokenizer(decoder=True).save_pretrained(model)
    (here / "texts.txt").write_text(TEXTS)
    request = ("decompose", model, "--ratio", "0.7", "--calibrate", "texts.txt", *options, "--json")
    code, out, err = pela(*request, "--blockwise", "-o", "whole-out")
    assert code == 0, err
    lazily()
    code, lazy, err = pela(*request, "-o", "lazy-out")
    assert code == 0, err
    assert "block by block" in err
    known, new = json.loads(out), json.loads(lazy)
    assert known["held_back"]["relative_error"] == pytest.approx(
        new["held_back"]["relative_error"], rel=1e-4
    )
    ours, theirs = ([la.pop("held_back_error") for la in d["layers"]] for d in (new, known))
    assert [error is None for error in ours] == [error is None for error in theirs]
    assert [e or 0 for e in ours] == pytest.approx([e or 0 for e in theirs], rel=1e-3)
    assert any(ours)
    assert known["layers"] == new["layers"]
    ours, theirs = (load_file(here / f"{o}-out/model.safetensors") for o in ("lazy", "whole"))
    assert {n: t.dtype for n, t in ours.items()} == {n: t.dtype for n, t in theirs.items()}
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-3, atol=1e-5)
    pelacli.load(here / "lazy-out")


def test_what_is_no_sequence_of_blocks_is_refused_before_anything_is_written(pela, here, lazily):
    model = sharded("BartForConditionalGeneration", here)
    generated_text.tokenizer(decoder=True).save_pretrained(model)
    (here / "texts.txt").write_text(TEXTS)
    before = sorted(here.iterdir())
    lazily()
    code, out, err = pela("decompose", model, "--ratio", "0.7", "--calibrate", "texts.txt")
    assert (code, out) == (2, "")
    assert "no plain sequence of blocks" in err
    assert sorted(here.iterdir()) == before


def test_half_precision_stays_and_files_are_the_same(pela, here, no_memory):
    model = sharded("LlamaForCausalLM", here, dtype=torch.bfloat16)
    pela("decompose", model, "--ratio", "0.7", "-o", "whole-out")
    no_memory()
    assert pela("decompose", model, "--ratio", "0.7", "-o", "lazy-out")[0] == 0
    assert content(here / "lazy-out") == content(here / "whole-out")
    tensors = load_file(here / "lazy-out/model.safetensors")
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    assert kinds == {torch.bfloat16}


def test_the_parameters_stay_on_disk_until_they_are_read(here):
    model = sharded("GPT2LMHeadModel", here)
    opened = loading.open(str(model), lazy_above=0)[0]
    assert all(parameter.is_meta for parameter in opened.module.parameters())
    whole = loading.open(str(model))[0].module.state_dict()
    for name in opened.module.state_dict():
        assert torch.equal(opened.weights.read(name), whole[name])


@pytest.mark.parametrize("equal", [True, False])
def test_a_tied_tensor_that_is_stored_twice_is_tied_where_both_are_equal(here, equal):
    whole = tied_checkpoints.checkpoint("LlamaForCausalLM", here / "model", "tied", says=True)
    file = whole / "model.safetensors"
    tensors = load_file(file)
    head = tensors["model.embed_tokens.weight"].clone()
    head[0, 0] += not equal
    save_file(tensors | {"lm_head.weight": head}, file, {"format": "pt"})
    opened = loading.open(str(whole), lazy_above=0)[0]
    assert opened.weights is not None
    assert torch.equal(opened.weights.read("lm_head.weight"), head)
    assert (opened.module.lm_head.weight is opened.module.model.embed_tokens.weight) == equal


def test_weights_that_transformers_computes_from_others_are_read_at_once(here):
    settings = tied_checkpoints.PLAIN | {"num_key_value_heads": 2, "num_local_experts": 4}
    config = transformers.MixtralConfig(**settings)
    transformers.MixtralForCausalLM(config).save_pretrained(here / "model")
    assert loading.open(str(here / "model"), lazy_above=0)[0].weights is None


def test_values_that_are_not_finite_are_named_and_nothing_is_written(pela, here, no_memory):
    model = sharded("LlamaForCausalLM", here)
    file = sorted(model.glob("*.safetensors"))[-1]
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    before = sorted(here.iterdir())
    no_memory()
    code, out, err = pela("decompose", model, "--ratio", "0.7", "-o", "out")
    assert (code, out) == (2, "")
    assert all(word in err for word in (name, file.name, "finite"))
    assert sorted(here.iterdir()) == before


def test_weights_that_do_not_fit_are_refused_as_ever(pela, here, no_memory):
    model = sharded("LlamaForCausalLM", here)
    file = sorted(model.glob("*.safetensors"))[-1]
    tensors = load_file(file)
    gone = sorted(tensors)[0]
    del tensors[gone]
    save_file(tensors, file, {"format": "pt"})
    whole = pela("decompose", model, "--ratio", "0.7", "-o", "out")
    no_memory()
    assert pela("decompose", model, "--ratio", "0.7", "-o", "out") == whole
    assert whole[0] == 2


def test_a_layer_is_made_once_when_it_is_written(pela, here, lazily, monkeypatch):
    model = sharded("LlamaForCausalLM", here, dtype=torch.bfloat16)
    made = []
    own = lazy_factors.LazyFactors._made
    monkeypatch.setattr(
        lazy_factors.LazyFactors,
        "_made",
        lambda self, name: (made.append(name), own(self, name))[1],
    )
    lazily()
    code, _, err = pela("decompose", model, "--ratio", "0.7", "-o", "out")
    assert code == 0, err
    assert len(made) == len(set(made)) > 0


def test_flops_of_a_model_in_half_precision_are_counted_in_float32(here):
    """A processor without instructions for bf16 takes minutes for a sample of a large model."""
    model = sharded("LlamaForCausalLM", here, dtype=torch.bfloat16)
    opened = loading.open(str(model), lazy_above=0)[0]
    assert opened.weights is not None
    types = set()
    for part in opened.module.modules():
        part.register_forward_hook(
            lambda _, inputs, output: types.add(output.dtype) if torch.is_tensor(output) else None
        )
    assert description.cost(opened, []) is not None
    assert types == {torch.float32}
