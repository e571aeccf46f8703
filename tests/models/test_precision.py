"""Weights in half precision stay so on disk, and are computed with in float32."""

from __future__ import annotations

import copy
import json
from collections import Counter

import pytest
import timm
import torch
import transformers
from generated_text import FILLERS, save_model
from safetensors.torch import load_file, save_file
from torch import nn

import pelacli
from pelacli.artefact import loading
from pelacli.errors import RequestError
from pelacli.models import opening, precision

HALVES = [torch.float16, torch.bfloat16]


def kinds(folder) -> Counter:
    tensors = load_file(folder / "model.safetensors").values()
    return Counter(t.dtype for t in tensors if t.is_floating_point())


@pytest.fixture
def halved(request, tmp_path):
    """(a file of test_vit in half precision, its type)."""
    kind = getattr(request, "param", torch.bfloat16)
    module = timm.create_model("test_vit", num_classes=10)
    file = tmp_path / "half.safetensors"
    save_file({name: t.to(kind) for name, t in module.state_dict().items()}, file)
    return file, kind


@pytest.mark.parametrize("halved", HALVES, ids=str, indirect=True)
def test_a_model_of_timm_in_half_precision_is_stored_in_it(halved, pela, tmp_path):
    file, kind = halved
    code, _, err = pela("decompose", file, "--arch", "test_vit", "--ratio", "0.5", "-o", "out")
    assert code == 0, err
    assert set(kinds(tmp_path / "out")) == {kind}
    sizes = [path.stat().st_size for path in (file, tmp_path / "out/model.safetensors")]
    assert sizes[1] < 0.6 * sizes[0]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_it_is_computed_with_in_float32(halved, tmp_path):
    """Its factors are those of the same numbers in float32, rounded once."""
    file, _ = halved
    opened = opening.open(str(file), arch="test_vit")
    assert {p.dtype for p in opened.module.parameters()} == {torch.float32}
    exact = {name: t.float() for name, t in load_file(file).items()}
    for name, tensor in opened.module.state_dict().items():
        assert torch.equal(tensor, exact[name])
    save_file(exact, tmp_path / "exact.safetensors")
    ours, theirs = (
        opening.open(str(f), arch="test_vit").module for f in (file, tmp_path / "exact.safetensors")
    )
    for module in (ours, theirs):
        pelacli.decompose(module, ratio=0.5)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_calibrated_healed_and_finetuned_artefacts_stay_in_half_precision(pela, tmp_path):
    kind = torch.bfloat16
    tiny = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    module = timm.create_model("vit_tiny_patch16_224", num_classes=10, **tiny)
    save_file({name: t.to(kind) for name, t in module.state_dict().items()}, "tiny.safetensors")
    recipe = tmp_path / "r.toml"
    recipe.write_text("""
model = "vit_tiny_patch16_224"
weights = "tiny.safetensors"
model_args = { img_size = 16, patch_size = 4, embed_dim = 32, depth = 2, num_heads = 2 }
num_classes = 10
output = "run"
[data]
dataset = "digits"
batch_size = 64
[decompose]
ratio = 0.6
samples = 32
calibrate = "train"
[pretrain]
epochs = 0.1
lr = 1e-4
[finetune]
epochs = 0.1
[eval]
""")
    code, _, err = pela("run", recipe)
    assert code == 0, err
    folders = [path.parent for path in (tmp_path / "run").rglob("model.safetensors")]
    assert len(folders) == 3
    for folder in folders:
        assert set(kinds(folder)) == {kind}, folder
    code, out, err = pela("eval", "run", "--data", "digits", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["metrics"]


def test_of_a_mixed_checkpoint_each_tensor_stays_what_it_is(tmp_path, pela):
    state = timm.create_model("test_vit", num_classes=10).state_dict()
    mixed = {name: t if "norm" in name else t.bfloat16() for name, t in state.items()}
    save_file(mixed, "mixed.safetensors")
    assert pela("decompose", "mixed.safetensors", "--arch", "test_vit", "--ratio", "0.6",
                "-o", "out")[0] == 0  # fmt: skip
    stored = load_file(tmp_path / "out/model.safetensors")
    assert {t.dtype for n, t in stored.items() if "norm" in n} == {torch.float32}
    others = {n: t for n, t in stored.items() if "norm" not in n and t.is_floating_point()}
    assert {t.dtype for t in others.values()} == {torch.bfloat16}


@pytest.mark.parametrize("halved", HALVES, ids=str, indirect=True)
def test_what_was_loaded_in_half_precision_is_saved_in_it(halved, pela, tmp_path):
    file, kind = halved
    pela("decompose", file, "--arch", "test_vit", "--ratio", "0.6", "-o", "out")
    module = pelacli.load("out")
    assert {p.dtype for p in module.parameters()} == {kind}
    pelacli.save(module, "again")
    assert set(kinds(tmp_path / "again")) == {kind}
    opened, _ = loading.open("out")
    assert {p.dtype for p in opened.module.parameters()} == {torch.float32}


def test_a_pickle_of_the_hub_in_half_precision_is_stored_in_it(tmp_path):
    from pelacli.models.timm import loading as timm_loading

    state = timm.create_model("test_vit").state_dict()
    torch.save({"model": {name: t.half() for name, t in state.items()}}, tmp_path / "w.pth")
    module = timm_loading.build(
        "test_vit", num_classes=None, model_args={}, weights="pretrained", file=tmp_path / "w.pth"
    )
    assert {p.dtype for p in module.parameters()} == {torch.float16}


def test_a_model_of_transformers_in_half_precision_is_calibrated_in_float32(tmp_path, pela):
    """And is stored as it came. The factors are those of the same numbers in float32, rounded."""
    exact, half = tmp_path / "exact", tmp_path / "half"
    for folder, kind in ((half, torch.bfloat16), (exact, torch.float32)):
        save_model("llama", "CausalLM", folder)
        module = transformers.AutoModelForCausalLM.from_pretrained(folder)
        module.bfloat16().to(kind).save_pretrained(folder)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(" ".join(FILLERS[i % 5 : i % 7 + 9]) for i in range(40)))
    for model in (exact, half):
        code, _, err = pela(
            "decompose", model, "--ratio", "0.7", "--calibrate", texts, "-o", f"{model}-out"
        )
        assert code == 0, err
    stored, floats = (load_file(tmp_path / f"{n}-out/model.safetensors") for n in ("half", "exact"))
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.bfloat16}
    assert stored.keys() == floats.keys()
    for name, tensor in stored.items():
        assert torch.equal(tensor, floats[name].bfloat16()), name


@pytest.mark.parametrize("kind", HALVES, ids=str)
@pytest.mark.parametrize("size", [1, 20_000])
def test_factors_of_a_module_in_half_precision_are_those_of_float32_rounded_once(kind, size):
    """Also where they are too large for float16 before they are balanced."""
    torch.manual_seed(0)
    half = torch.nn.Sequential(torch.nn.Linear(128, 96))
    torch.nn.init.constant_(half[0].weight, size).data += size / 10 * torch.randn(96, 128)
    half = half.to(kind)
    exact = torch.nn.Sequential(torch.nn.Linear(128, 96))
    exact.load_state_dict({name: t.float() for name, t in half.state_dict().items()})
    for module in (half, exact):
        pelacli.decompose(module, ratio=0.3, head=[])
    for name, tensor in half.state_dict().items():
        assert tensor.isfinite().all(), name
        wanted = exact.state_dict()[name]
        assert torch.equal(tensor, wanted.to(tensor.dtype)), name
        assert tensor.dtype == (kind if wanted.is_floating_point() else torch.int32)


def test_what_fp16_has_no_number_for_stays_in_float32():
    stored = {"a.weight": torch.float16, "b.weight": torch.float16}
    large = torch.tensor([1e5, 1.0])
    assert precision.as_stored("a.weight", large, stored).dtype == torch.float32
    assert precision.as_stored("b.down.weight", large / 1e3, stored).dtype == torch.float16


def test_a_type_that_the_user_has_chosen_since_is_kept():
    tensor = torch.ones(2, dtype=torch.bfloat16)
    assert precision.as_stored("a", tensor, {"a": torch.float16}).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", HALVES, ids=str)
def test_a_module_in_half_precision_is_calibrated_in_float32(kind):
    """Its factors are those of the same numbers in float32, rounded once, and it stays in half."""
    torch.manual_seed(0)
    half = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)).to(kind)
    exact = copy.deepcopy(half).float()
    samples = torch.randn(64, 16).to(kind)
    pelacli.decompose(half, ratio=0.5, batches=samples)
    pelacli.decompose(exact, ratio=0.5, batches=samples.float())
    for one, other in zip(half.parameters(), exact.parameters(), strict=True):
        assert one.dtype == kind
        assert torch.equal(one, other.to(kind))


def test_a_module_in_half_precision_that_is_refused_is_as_it_was():
    half = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16)).bfloat16()
    before = copy.deepcopy(half.state_dict())
    with pytest.raises(RequestError):
        pelacli.decompose(half, ratio=0.5, batches=torch.randn(8, 7))
    for name, tensor in half.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_load_gives_the_precision_of_the_file_dense_and_low_rank(kind, tmp_path):
    dense = timm.create_model("test_vit").to(kind)
    timm.models._hub.save_for_hf(dense, tmp_path / "d", safe_serialization=True)
    opened = pelacli.load(tmp_path / "d")
    assert {p.dtype for p in opened.parameters()} == {kind}
    pelacli.decompose(opened, 0.6)
    pelacli.save(opened, tmp_path / "a")
    again = pelacli.load(tmp_path / "a")
    assert {p.dtype for p in again.parameters()} == {kind}
    before, after = opened.state_dict(), again.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
