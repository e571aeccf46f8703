"""A dense export loads in timm or transformers alone, and gives what the artefact gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import transformers
from generated_text import save_model
from safetensors.torch import load_file
from tied_checkpoints import checkpoint

import pelacli
from pelacli.artefact import loading
from pelacli.lowrank import find

IDS = torch.arange(3, 13)[None]


def artefact(source: Path | torch.nn.Module, to: Path, form: str = "auto") -> Path:
    model = loading.open(str(source))[0].module if isinstance(source, Path) else source
    pelacli.decompose(model, 0.6, scope="layers", form=form)
    pelacli.save(model, to)
    return to


def names_pela(path: Path) -> bool:
    config = json.loads((path / "config.json").read_text())
    return (
        bool({"quantization_config", "fusion_config"} & config.keys())
        or (path / "pela.json").exists()
    )


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("GPT2LMHeadModel", "tied"),  # whose layers are in × out
        ("LlamaForCausalLM", "apart"),
        ("AlbertForMaskedLM", "tied"),
        ("T5ForConditionalGeneration", "tied"),
    ],
)
def test_transformers_loads_it_with_nothing_of_pela(name, stored, tmp_path):
    source = checkpoint(name, tmp_path / "m", stored, stored == "tied")
    path = artefact(source, tmp_path / "a")
    exported = pelacli.export(path, tmp_path / "d", to="dense")
    assert exported.difference < 1e-5
    assert not names_pela(tmp_path / "d")
    dense, info = getattr(transformers, name).from_pretrained(
        tmp_path / "d", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = {"decoder_input_ids": IDS} if dense.config.is_encoder_decoder else {}
    with torch.no_grad():
        ours, theirs = (m(input_ids=IDS, **inputs).logits for m in (pelacli.load(path), dense))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    shapes = {n: t.shape for n, t in load_file(tmp_path / "d" / "model.safetensors").items()}
    assert shapes == {n: t.shape for n, t in load_file(source / "model.safetensors").items()}


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_timm_loads_it_with_nothing_of_pela(name, tmp_path):
    torch.manual_seed(0)
    path = artefact(timm.create_model(name, num_classes=3), tmp_path / "a")
    pelacli.export(path, tmp_path / "d", to="dense")
    assert not names_pela(tmp_path / "d")
    dense = timm.create_model(f"local-dir:{tmp_path / 'd'}", pretrained=True).eval()
    assert dense.num_classes == 3
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(dense(x), pelacli.load(path)(x), rtol=1e-4, atol=1e-5)


def test_a_sentence_encoder_keeps_its_files(tmp_path):
    sentences = pytest.importorskip("sentence_transformers")
    model = sentences.SentenceTransformer(str(save_model("bert", "", tmp_path / "m")))
    model.save(str(tmp_path / "s"))
    path = artefact(tmp_path / "s", tmp_path / "a")
    pelacli.export(path, tmp_path / "d", to="dense")
    texts = ["w1 k2 .", "w3"]
    ours, theirs = (
        sentences.SentenceTransformer(str(p)).encode(texts) for p in (path, tmp_path / "d")
    )
    assert abs(ours - theirs).max() < 1e-5


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_precision_is_that_of_the_file(precision, tmp_path):
    path = artefact(save_model("llama", "CausalLM", tmp_path / "m"), tmp_path / "a")
    exported = pelacli.export(path, tmp_path / "d", to="dense", precision=precision)
    assert 0 < exported.difference < exported.bound
    kinds = {t.dtype for t in load_file(tmp_path / "d" / "model.safetensors").values()}
    assert kinds == {{"fp16": torch.float16, "bf16": torch.bfloat16}[precision]}
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "d")
    assert dense.dtype in kinds


def test_a_model_in_memory_is_exported_and_stays_as_it_is(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3)
    pelacli.decompose(model, 0.6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    x = torch.randn(2, 3, 160, 160)
    exported = pelacli.export(
        model, tmp_path / "d", to="dense", precision="bf16", batches=[x, x[:1]]
    )
    assert [batch["inputs"]["pixel_values"][0] for batch in exported.batches] == [2, 1]
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_factors_are_multiplied_in_float32_and_rounded_once(tmp_path):
    path = artefact(save_model("llama", "CausalLM", tmp_path / "m"), tmp_path / "a", "factors")
    pelacli.export(path, tmp_path / "d", to="dense", precision="fp16")
    stored = load_file(tmp_path / "d" / "model.safetensors")
    for name, layer in find.low_rank_layers(pelacli.load(path)).items():
        down, up = layer.factors()
        assert torch.equal(stored[f"{name}.weight"], (up @ down).half()), name
