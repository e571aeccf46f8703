"""The artefact: whole or not at all, strict, sharded, tied."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import huggingface_hub
import pytest
import torch
from older_artefacts import forget_digests
from safetensors.torch import load_file, save_file

from pelacli.artefact import card, description, loading, saving
from pelacli.errors import PelaError, RequestError
from pelacli.factorize import engine
from pelacli.lowrank import find, replace
from pelacli.manifest import document
from pelacli.models import opening, wrapping
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget
from pelacli.system import files as system_files

BERT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": 50,
}  # fmt: skip


def described(opened):
    return description.describe(opened, find.find_layers(opened.module, head=opened.head), None)


@pytest.fixture
def vit():
    return opening.open("test_vit", weights="random")


def files(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_what_is_in_it(vit, tmp_path):
    saving.save(vit, described(vit), tmp_path / "a")
    assert set(files(tmp_path / "a")) == {
        "model.safetensors", "config.json", "pela.json", "README.md",
    }  # fmt: skip
    assert "test_vit" in (tmp_path / "a" / "README.md").read_text()


def test_a_failure_half_way_leaves_the_old_one(vit, tmp_path, monkeypatch):
    path = tmp_path / "a"
    saving.save(vit, described(vit), path)
    before = files(path)

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(card, "model_card", fails)
    with torch.no_grad():
        next(vit.module.parameters()).add_(1)
    with pytest.raises(PelaError, match="a: can't be written: No space left on device"):
        saving.save(vit, described(vit), path)
    assert files(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises(PelaError):
        saving.save(vit, described(vit), tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_shards_are_read_back(vit, tmp_path, monkeypatch):
    real = huggingface_hub.save_torch_state_dict
    monkeypatch.setattr(
        huggingface_hub,
        "save_torch_state_dict",
        lambda tensors, folder: real(tensors, folder, max_shard_size="300KB"),
    )
    saving.save(vit, described(vit), tmp_path / "a")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 2
    assert (tmp_path / "a" / "model.safetensors.index.json").is_file()
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(loading.load(tmp_path / "a").module(x), vit.module(x))
    (next((tmp_path / "a").glob("*-00001-*"))).unlink()
    with pytest.raises(RequestError, match=r"-00001-.* is missing"):
        loading.load(tmp_path / "a")


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    import transformers

    module = transformers.BertForMaskedLM(transformers.BertConfig(**BERT)).eval()
    opened = wrapping.wrap(module)
    reasons = {la.name: la.reason for la in find.find_layers(module, head=opened.head)}
    assert reasons["cls.predictions.decoder"].startswith("tied to")
    saving.save(opened, described(opened), tmp_path / "a")
    back = loading.load(tmp_path / "a").module
    assert back.cls.predictions.decoder.weight is back.bert.embeddings.word_embeddings.weight
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(back(ids).logits, module(ids).logits)
    assert sum(p.numel() for p in back.parameters()) == sum(p.numel() for p in module.parameters())


def test_the_record_is_readable_without_torch(vit, tmp_path):
    saving.save(vit, described(vit), tmp_path / "a")
    script = (
        "import sys; from pathlib import Path; from pelacli.manifest import document\n"
        f"print(document.read(Path({str(tmp_path / 'a')!r})).params.after)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == vit.params


def test_a_run_directory_stands_for_its_last_step(vit, tmp_path):
    for step in ("dense", "decompose"):
        saving.save(vit, described(vit), tmp_path / "run" / step)
    opened, found = loading.open(str(tmp_path / "run"))
    assert opened.ref == str(tmp_path / "run" / "decompose")
    assert isinstance(found, document.Manifest)
    with pytest.raises(RequestError, match="leave --weights out"):
        loading.open(str(tmp_path / "run"), weights="random")


def test_a_language_model_of_conv1d_and_a_tied_head(tmp_path):
    import transformers

    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0
    )
    opened = wrapping.wrap(transformers.GPT2LMHeadModel(config).eval())
    layers = find.find_layers(opened.module, head=opened.head)
    free = [la for la in layers if la.reason is None]
    assert {la.kind for la in free} == {"conv1d"}
    cuts = engine.solve(free, {})
    plan = planner.plan(
        engine.spectra(free, cuts, {}), Budget("uniform", Fraction(1, 2), scope="layers")
    )
    described_before = description.describe(opened, layers, None, plan)
    replace.replace(opened.module, engine.factors(free, cuts, {}, plan))
    saving.save(opened, described_before, tmp_path / "a")
    back = loading.load(tmp_path / "a").module
    assert back.lm_head.weight is back.transformer.wte.weight
    assert described_before.params.after == sum(p.numel() for p in back.parameters())
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(back(ids).logits, opened.module(ids).logits)


def damaged(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    forget_digests(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: t.pop("blocks.0.attn.qkv.weight"),
            r"a: its weights lack blocks\.0\.attn\.qkv",
        ),
        (
            lambda t: t.update(extra=torch.ones(2)),
            r"model\.safetensors: extra: the model has no such tensor",
        ),
        (
            lambda t: t.update({"norm.weight": torch.ones(2)}),
            r"model\.safetensors: norm\.weight: has shape \(2,\), the model wants \(64,\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(vit, tmp_path, change, says):
    saving.save(vit, described(vit), tmp_path / "a")
    damaged(tmp_path / "a", change)
    with pytest.raises(RequestError, match=says):
        loading.load(tmp_path / "a")


def test_a_stop_half_way_leaves_no_litter(vit, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(card, "model_card", stopped)
    with pytest.raises(KeyboardInterrupt):
        saving.save(vit, described(vit), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_without_an_exchange_in_one_step_two_do(vit, tmp_path, monkeypatch):
    class Old:
        """A C library that has no ``renameat2``."""

        def __init__(self, _name):
            pass

    monkeypatch.setattr(system_files.ctypes, "CDLL", Old)
    for _ in range(2):
        saving.save(vit, described(vit), tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    loading.load(tmp_path / "a")


def test_a_link_stays_and_its_target_is_replaced(vit, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "a").symlink_to("disk")
    for _ in range(2):
        saving.save(vit, described(vit), tmp_path / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "disk"]
    assert (tmp_path / "a").is_symlink()
    assert (tmp_path / "disk" / "pela.json").is_file()


def test_everyone_may_read_what_the_umask_allows(vit, tmp_path):
    saving.save(vit, described(vit), tmp_path / "a")
    mask = os.umask(0)
    os.umask(mask)
    for file in (tmp_path / "a").iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~mask, file.name


def test_places_that_can_not_be_replaced(here):
    with pytest.raises(RequestError, match="is the current directory"):
        saving.check_output(Path())
    with pytest.raises(RequestError, match="is a mount point"):
        saving.check_output(Path("/proc"))
    (here / "file").write_text("")
    for path in (here / "file", here / "file" / "below"):
        with pytest.raises(RequestError, match="choose another output"):
            saving.check_output(path)
    saving.check_output(here / "new" / "deep")


def test_carried_files_come_back(vit, tmp_path):
    vit.carried = {"vocab.txt": b"a\nb\n", "1_Pooling/config.json": b"{}"}
    saving.save(vit, described(vit), tmp_path / "a", extra={"metrics.jsonl": b"{}\n"})
    assert (tmp_path / "a" / "1_Pooling" / "config.json").read_bytes() == b"{}"
    assert (tmp_path / "a" / "metrics.jsonl").is_file()
    assert loading.load(tmp_path / "a").opened.carried == vit.carried
