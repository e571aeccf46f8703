"""The model card."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from generated_text import save_model

from pelacli.manifest.document import SourceRecord


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/home/someone/models/vit-food/", "vit-food"),
        ("../models/vit-food", "vit-food"),
        ("~/vit-food", "vit-food"),
        ("./a/vit-food", "vit-food"),
        ("owner/vit-food", "owner/vit-food"),
        ("vit_base_patch16_224.augreg_in21k", "vit_base_patch16_224.augreg_in21k"),
        (".", "ViTModel"),
        ("..", "ViTModel"),
        ("/", "ViTModel"),
    ],
)
def test_a_model_is_called_by_a_name_and_by_no_path(model, name):
    record = SourceRecord(model=model, library="transformers", architecture="ViTModel")
    assert record.name == name


def test_no_path_of_the_machine_is_in_card_or_configuration(pela, here):
    save_model("bert", "", here / "encoder")
    model, output = here / "encoder", here / "out" / "a"
    code, _, err = pela("decompose", model, "--ratio", "0.6", "--scope", "layers", "-o", output)
    assert code == 0, err
    assert "\n# encoder, made smaller by pela\n" in (output / "README.md").read_text()
    for file in output.iterdir():
        if file.name not in ("pela.json", "spectra.safetensors"):  # how to repeat it
            assert str(here).encode() not in file.read_bytes(), file.name
    shutil.rmtree(here / "encoder")
    code, out, err = pela("report", output)
    assert code == 0, err
    assert str(Path(here) / "encoder") not in out
