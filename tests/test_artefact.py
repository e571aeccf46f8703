"""The artefact: whole or not at all, strict, sharded, tied."""

from __future__ import annotations

import subprocess
import sys

import huggingface_hub
import pytest
import torch

from pelacli import artefact, card, lowrank, manifest, models, record
from pelacli.errors import PelaError, RequestError

BERT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": 50,
}  # fmt: skip


def described(opened):
    return record.describe(opened, lowrank.find_layers(opened.module, head=opened.head), None)


@pytest.fixture
def vit():
    return models.open("test_vit", weights="random")


def files(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_what_is_in_it(vit, tmp_path):
    artefact.save(vit, described(vit), tmp_path / "a")
    assert set(files(tmp_path / "a")) == {
        "model.safetensors", "config.json", "pela.json", "README.md",
    }  # fmt: skip
    assert "test_vit" in (tmp_path / "a" / "README.md").read_text()


def test_a_failure_half_way_leaves_the_old_one(vit, tmp_path, monkeypatch):
    path = tmp_path / "a"
    artefact.save(vit, described(vit), path)
    before = files(path)

    def fails(_record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(card, "model_card", fails)
    with torch.no_grad():
        next(vit.module.parameters()).add_(1)
    with pytest.raises(PelaError, match="a: can't be written: No space left on device"):
        artefact.save(vit, described(vit), path)
    assert files(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises(PelaError):
        artefact.save(vit, described(vit), tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_shards_are_read_back(vit, tmp_path, monkeypatch):
    real = huggingface_hub.save_torch_state_dict
    monkeypatch.setattr(
        huggingface_hub,
        "save_torch_state_dict",
        lambda tensors, folder: real(tensors, folder, max_shard_size="300KB"),
    )
    artefact.save(vit, described(vit), tmp_path / "a")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 2
    assert (tmp_path / "a" / "model.safetensors.index.json").is_file()
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(artefact.load(tmp_path / "a").module(x), vit.module(x))
    (next((tmp_path / "a").glob("*-00001-*"))).unlink()
    with pytest.raises(RequestError, match="its safetensors lack"):
        artefact.load(tmp_path / "a")


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    import transformers

    module = transformers.BertForMaskedLM(transformers.BertConfig(**BERT)).eval()
    opened = models.wrap(module)
    reasons = {la.name: la.reason for la in lowrank.find_layers(module, head=opened.head)}
    assert reasons["cls.predictions.decoder"].startswith("tied to")
    artefact.save(opened, described(opened), tmp_path / "a")
    back = artefact.load(tmp_path / "a").module
    assert back.cls.predictions.decoder.weight is back.bert.embeddings.word_embeddings.weight
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(back(ids).logits, module(ids).logits)
    assert sum(p.numel() for p in back.parameters()) == sum(p.numel() for p in module.parameters())


def test_the_record_is_readable_without_torch(vit, tmp_path):
    artefact.save(vit, described(vit), tmp_path / "a")
    script = (
        "import sys; from pathlib import Path; from pelacli import manifest\n"
        f"print(manifest.read(Path({str(tmp_path / 'a')!r})).params.after)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == vit.params


def test_a_run_directory_stands_for_its_last_step(vit, tmp_path):
    for step in ("dense", "decompose"):
        artefact.save(vit, described(vit), tmp_path / "run" / step)
    opened, found = artefact.open(str(tmp_path / "run"))
    assert opened.ref == str(tmp_path / "run" / "decompose")
    assert isinstance(found, manifest.Manifest)
    with pytest.raises(RequestError, match="leave --weights out"):
        artefact.open(str(tmp_path / "run"), weights="random")
