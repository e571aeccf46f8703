"""An artefact whose files are not those that were written is seen, named, and made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from older_artefacts import forget_digests

import pelacli
from pelacli import console
from pelacli.errors import RequestError
from pelacli.manifest import document
from pelacli.recipe.schema import Recipe
from pelacli.steps import pipeline

WEIGHTS = "model.safetensors"


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def verified(pela, *paths: object) -> tuple[int, list[dict[str, object]]]:
    code, out, _ = pela("verify", *paths, "--json")
    return code, json.loads(out)


def test_a_whole_artefact_verifies(artefact, pela):
    code, [result] = verified(pela, artefact)
    assert code == 0
    assert result["whole"]
    assert result["recorded"]
    assert not result["damages"]
    assert not result["notes"]
    assert result["files"] == len(list(artefact.iterdir())) - 1
    assert pelacli.verify(artefact).whole


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off, Path.unlink])
@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "spectra.safetensors"])
def test_damage_to_any_file_is_named_with_a_remedy(artefact, pela, name, damage):
    damage(artefact / name)
    code, [result] = verified(pela, artefact)
    assert code == 1
    assert [d["file"] for d in result["damages"]] == [name]
    code, out, err = pela("verify", artefact)
    assert code == 1
    assert f"  {name}: " in out
    assert "copy the artefact again" in err


def test_a_manifest_that_was_changed_is_damage_too(artefact, pela):
    file = artefact / document.FILE
    file.write_text(file.read_text().replace('"rank": 1', '"rank": 2', 1))
    code, [result] = verified(pela, artefact)
    assert code == 1
    assert [d["file"] for d in result["damages"]] == [document.FILE]
    file.write_text(file.read_text()[:-40])
    assert verified(pela, artefact)[0] == 1


def test_a_users_own_files_and_an_edited_card_are_notes(artefact, pela):
    (artefact / "README.md").write_text("Our model.")
    (artefact / "notes.txt").write_text("Works.")
    code, [result] = verified(pela, artefact)
    assert code == 0
    assert result["whole"]
    assert [note.split(":")[0] for note in result["notes"]] == ["README.md", "notes.txt"]


def test_a_file_that_would_be_read_as_weights_is_damage(artefact, pela):
    shutil.copy(artefact / WEIGHTS, artefact / "model-00002-of-00002.safetensors")
    assert verified(pela, artefact)[0] == 1


def test_links_into_a_hubs_cache_are_followed_and_no_others(artefact, pela):
    snapshot, blob = artefact.parent / "hub/snapshots/a", artefact.parent / "hub/blobs/b"
    for folder in (snapshot.parent, blob.parent):
        folder.mkdir(parents=True)
    artefact.rename(snapshot)
    (snapshot / WEIGHTS).rename(blob)
    (snapshot / WEIGHTS).symlink_to(blob)
    assert verified(pela, snapshot)[0] == 0
    flip_a_bit(blob)
    assert verified(pela, snapshot)[0] == 1
    blob.rename(artefact.parent / "outside")
    for target in (blob, artefact.parent / "outside"):  # to nothing, and to somebody else's
        (snapshot / WEIGHTS).unlink()
        (snapshot / WEIGHTS).symlink_to(target)
        code, [result] = verified(pela, snapshot)
        assert code == 1
        assert "link" in result["damages"][0]["what"]


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", ""])
def test_a_record_of_a_file_elsewhere_is_refused_unread(artefact, pela, name):
    file = artefact / document.FILE
    content = json.loads(file.read_text())
    content["files"][name] = {"size": 1, "sha256": "0"}
    file.write_text(json.dumps(content))
    assert verified(pela, artefact)[0] == 1
    with pytest.raises(RequestError, match="no file of the artefact"):
        pelacli.load(artefact)


def test_an_artefact_without_digests_loads_and_verifies_by_its_form(artefact, pela):
    forget_digests(artefact)
    code, [result] = verified(pela, artefact)
    assert code == 0
    assert not result["recorded"]
    assert "older pela" in result["notes"][0]
    pelacli.load(artefact)
    cut_off(artefact / WEIGHTS)
    assert verified(pela, artefact)[0] == 1


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_what_is_no_artefact_is_a_wrong_request(here, pela, path):
    code, _, err = pela("verify", path)
    assert code == 2
    assert "artefact" in err


def test_no_command_reads_a_flipped_bit_without_a_word(artefact, pela, monkeypatch):
    flip_a_bit(artefact / WEIGHTS)
    for command in (
        ("eval", artefact),
        ("report", artefact),
        ("decompose", artefact, "--ratio", "0.9", "-o", "b"),
    ):
        code, out, err = pela(*command)
        assert (code, out) == (2, ""), command
        assert f"{WEIGHTS}: its content is not what was written" in err
    assert not Path("b").exists()
    with pytest.raises(RequestError, match=WEIGHTS):
        pelacli.load(artefact)
    monkeypatch.setenv("PELA_SKIP_DIGESTS", "1")
    pelacli.load(artefact)


def test_another_file_that_was_changed_gets_a_line(artefact, pela):
    config = artefact / "config.json"
    config.write_text(config.read_text() + "\n")
    code, out, err = pela("report", artefact)
    assert code == 0
    assert out
    assert "config.json: has" in err


def test_run_does_a_damaged_step_again_and_says_so(here, capsys):
    recipe = Recipe.model_validate(
        {"model": "test_vit", "weights": "random", "output": "run", "decompose": {"ratio": "1/2"}}
    )
    pipeline.run(recipe)
    folder = here / "run" / "decompose"
    whole = (folder / WEIGHTS).read_bytes()
    for damage in (flip_a_bit, cut_off, Path.unlink):
        console.verbosity.said.clear()
        damage(folder / WEIGHTS)
        [step] = pipeline.run(recipe).steps
        assert not step.skipped
        assert "decompose is done again" in capsys.readouterr().err
        assert (folder / WEIGHTS).read_bytes() == whole
    [step] = pipeline.run(recipe).steps
    assert step.skipped
