"""What a user keeps in an output directory outlives the artefact, and no output is its input."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from refusals import refused as refused
from refusals import tree

from pelacli.artefact import users_files
from pelacli.manifest import document

ARGS = ("--arch", "test_vit", "--ratio", "0.6")


@pytest.fixture
def again(pela, artefact, checkpoint):
    """Make the artefact ``a`` once more."""

    def make() -> None:
        code, _, err = pela("decompose", checkpoint, *ARGS, "-o", "a")
        assert code == 0, err

    return make


def test_files_folders_and_links_of_a_user_stay_as_they_were(again, artefact, here):
    (here / "elsewhere").write_text("mine too")
    mine = {
        "notes.txt": "mine", "results.json": "{}", ".git/HEAD": "ref", "plots/a b.png": "x",
        "deep/er/still": "y", "weights.pth": "z", "dir/model.safetensors": "w",
    }  # fmt: skip
    for name, text in mine.items():
        (artefact / name).parent.mkdir(parents=True, exist_ok=True)
        (artefact / name).write_text(text)
    (artefact / "notes.txt").chmod(0o600)
    (artefact / "link").symlink_to(here / "elsewhere")
    (artefact / "folder").symlink_to(here)
    (artefact / "nowhere").symlink_to("nothing")
    before = json.loads((artefact / document.FILE).read_text())
    again()
    assert json.loads((artefact / document.FILE).read_text())["files"] != before["files"]
    assert {name: (artefact / name).read_text() for name in mine} == mine
    assert (artefact / "notes.txt").stat().st_mode & 0o777 == 0o600
    assert os.readlink(artefact / "link") == str(here / "elsewhere")
    assert os.readlink(artefact / "folder") == str(here)
    assert os.readlink(artefact / "nowhere") == "nothing"
    assert (here / "elsewhere").read_text() == "mine too"
    assert sorted(p.name for p in here.iterdir()) == ["a", "elsewhere"]


def test_what_pela_wrote_before_goes(again, artefact):
    document_before = document.read(artefact)
    assert document_before.files is not None
    (artefact / "tokenizer.json").write_text("carried before")
    record = document_before.files["config.json"]
    document_before.files["tokenizer.json"] = record
    (artefact / document.FILE).write_text(document.dumps(document_before))
    again()
    assert not (artefact / "tokenizer.json").exists()


@pytest.mark.parametrize("manifest", ["without files", "damaged"])
def test_without_a_list_the_usual_names_are_pelas(again, artefact, manifest):
    old = json.loads((artefact / document.FILE).read_text())
    del old["files"]
    text = "{" if manifest == "damaged" else json.dumps(old)
    (artefact / document.FILE).write_text(text)
    (artefact / "vocab.txt").write_text("carried once")
    (artefact / "1_Dense").mkdir()
    (artefact / "1_Dense" / "config.json").write_text("carried once")
    (artefact / "notes.txt").write_text("mine")
    assert users_files.names(artefact) == ["notes.txt"]
    again()
    assert (artefact / "notes.txt").read_text() == "mine"
    assert not (artefact / "vocab.txt").exists()


def test_a_disk_without_second_names_gets_copies(again, artefact, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(users_files.os, "link", refuse)
    (artefact / "notes.txt").write_text("mine")
    again()
    assert (artefact / "notes.txt").read_text() == "mine"


def test_a_file_that_would_be_read_as_weights_is_refused(refused, artefact, checkpoint):
    (artefact / "model-mine.safetensors").write_bytes(b"x")
    line = refused("decompose", checkpoint, *ARGS, "-o", "a")
    assert "a/model-mine.safetensors: was not written by pela" in line


def test_a_failure_keeps_everything(pela, artefact, checkpoint, here, monkeypatch):
    (artefact / "notes.txt").write_text("mine")
    before = tree(here)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(users_files, "keep", fail)
    assert pela("decompose", checkpoint, *ARGS, "-o", "a")[0] == 1
    assert tree(here) == before


@pytest.mark.parametrize(
    "output",
    ["m", "./m", "m/", "m/../m", "link", "ABSOLUTE", "m/sub", "m/new/sub", "link/sub", "HARD"],
)
@pytest.mark.parametrize("kind", ["artefact", "plain"])
def test_an_output_that_is_or_lies_in_its_input_is_refused(refused, artefact, here, output, kind):
    shutil.move(artefact, here / "m")
    if kind == "plain":
        (here / "m" / document.FILE).unlink()
    (here / "link").symlink_to("m")
    output = {"ABSOLUTE": str(here / "m"), "HARD": "link/../m"}.get(output, output)
    line = refused("decompose", "m", "--ratio", "0.4", "-o", output)
    assert "choose another output" in line


def test_an_output_that_holds_its_input_is_refused(refused, artefact, here):
    shutil.copytree(artefact, artefact / "inner")
    assert "lies in it and would go" in refused("decompose", "a/inner", "--ratio", "0.4", "-o", "a")
    assert "choose another output" in refused(
        "decompose", Path("a") / "inner", "--ratio", "0.4", "-o", here
    )
