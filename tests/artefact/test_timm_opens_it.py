"""timm opens no artefact, whatever it is asked to make of it: its layers would be random."""

from __future__ import annotations

import json

import pytest
import timm
import torch

import pelacli

SWIN = {"img_size": 56, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)}
MODELS = {"test_vit": {}, "swin_tiny_patch4_window7_224": SWIN, "test_convnext": {}}


def artefact(name, to):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **MODELS[name]).eval()
    pelacli.decompose(model, 0.6, scope="layers")
    pelacli.save(model, to)
    return model


@pytest.mark.parametrize("name", list(MODELS))
def test_timm_refuses_an_artefact_whatever_it_is_to_become(name, tmp_path):
    artefact(name, tmp_path / "a")
    for asked in ({}, {"num_classes": 5}, {"num_classes": 0}, {"features_only": True}):
        with pytest.raises(RuntimeError, match=r"Missing key\(s\)"):
            timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True, **asked)


def test_what_timm_is_kept_from_reading_comes_back_with_the_model(tmp_path):
    model = artefact("test_vit", tmp_path / "a")
    assert model.pretrained_cfg["classifier"] == "head"
    again = pelacli.load(tmp_path / "a")
    assert again.pretrained_cfg["classifier"] == "head"
    pelacli.save(again, tmp_path / "b")
    one, other = (json.loads((tmp_path / n / "config.json").read_text()) for n in "ab")
    assert one == other
    pelacli.export(again, tmp_path / "d", to="dense")
    dense = timm.create_model(f"local-dir:{tmp_path / 'd'}", pretrained=True, num_classes=5)
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        ours, theirs = (m.eval().forward_features(x) for m in (again, dense))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
