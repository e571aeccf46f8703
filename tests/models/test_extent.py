"""A configuration out of all proportion to its weights is refused before a model is built of it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import timm
import torch
import transformers
from families import BERT
from refusals import refused as refused
from safetensors.torch import save_file

from pelacli.errors import RequestError
from pelacli.models import config_file, extent

HUGE = 10**9


@pytest.fixture
def bert(here) -> Path:
    transformers.BertForSequenceClassification(transformers.BertConfig(**BERT)).save_pretrained("m")
    return here / "m" / "config.json"


@pytest.fixture
def vit(here) -> Path:
    vit = timm.create_model("test_vit", num_classes=3)
    timm.models.save_for_hf(vit, "m", safe_serialization=True)
    return here / "m" / "config.json"


@pytest.fixture(autouse=True)
def nothing_large_is_built(monkeypatch):
    """Whatever is built with memory is small."""
    numel = 1 << 26
    for name in ("empty", "zeros", "ones", "randn"):
        original = getattr(torch, name)

        def guarded(*size, _original=original, **how):
            tensor_like = _original(*size, **how | {"device": "meta"})
            on_meta = str(how.get("device") or torch.get_default_device()) == "meta"
            assert on_meta or tensor_like.numel() <= numel
            return _original(*size, **how)

        monkeypatch.setattr(torch, name, guarded)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 101), ("num_hidden_layers", 20_000), ("num_attention_heads", HUGE),
        ("hidden_size", HUGE), ("intermediate_size", 10 * HUGE), ("vocab_size", 1000 * HUGE),
        ("max_position_embeddings", 10 * HUGE), ("type_vocab_size", HUGE), ("num_labels", 10**7),
        ("id2label", {str(i): "x" for i in range(2000)}), ("hidden_size", -8),
        ("num_hidden_layers", "3"), ("num_attention_heads", 0), ("vocab_size", None),
    ],
)  # fmt: skip
def test_sizes_of_a_text_model(refused, bert, key, value):
    bert.write_text(json.dumps(json.loads(bert.read_text()) | {key: value}))
    line = refused("decompose", "m", "--ratio", "0.8")
    assert line.startswith(("pela: error: m/config.json", "pela: error: m: "))
    assert "has no safetensors" not in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("depth", 101), ("embed_dim", 10**7), ("mlp_ratio", 1e6), ("img_size", 10**6),
        ("num_classes", 10**8), ("in_chans", 10**7),
    ],
)  # fmt: skip
def test_sizes_of_an_image_model(refused, vit, key, value):
    config = json.loads(vit.read_text())
    config["model_args"][key] = value
    if key == "num_classes":
        config[key] = value
    vit.write_text(json.dumps(config))
    line = refused("decompose", "m", "--ratio", "0.8")
    assert line.startswith(("pela: error: m/config.json", "pela: error: m: "))
    assert "has no safetensors" not in line


def test_sizes_that_its_weights_have_are_opened(pela, here):
    config = transformers.BertConfig(**BERT | {"num_labels": 1500})
    transformers.BertForSequenceClassification(config).save_pretrained("m")
    code, _, err = pela("report", "m")
    assert code == 0, err


def test_as_many_layers_as_there_are_tensors_may_be(tmp_path):
    save_file({str(n): torch.zeros(1) for n in range(150)}, tmp_path / "model.safetensors")
    for layers, is_fine in ((100, True), (150, True), (151, False)):
        (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))
        with (
            contextlib.nullcontext()
            if is_fine
            else pytest.raises(RequestError, match="is 151, more than")
        ):
            config_file.read(tmp_path, "restore it")


def test_fresh_weights_need_memory(refused, bert, monkeypatch):
    monkeypatch.setattr(extent, "_ANYWAY", 0)
    monkeypatch.setattr(extent.memory, "available", lambda: 1000)
    for args in (("m",), ("bert",), ("test_vit",)):
        line = refused("decompose", *args, "--weights", "random", "--ratio", "0.8")
        assert "describes a model of" in line
        assert "are free" in line
