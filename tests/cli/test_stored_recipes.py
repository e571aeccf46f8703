"""Recipes that another version of pela has stored, in an artefact or with spectra."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pelacli import console
from pelacli.cli import requests
from pelacli.errors import RequestError
from pelacli.planning import settings
from pelacli.planning import stored as planning_stored
from pelacli.recipe.data import Data
from pelacli.recipe.evaluation import Evaluation
from pelacli.recipe.schema import Recipe, resolved, task_of

UPGRADE = "upgrade pela (pip install -U pelacli)"
FULL = {
    "model": "m",
    "output": "o",
    "task": "segmentation",
    "task_args": {"void": 255},
    "data": {"dataset": "digits", "batch_size": 8, "augment": {"mixup": 0.5}},
    "decompose": {"max_drop": 1.0, "data": {"dataset": "other"}, "task": "unlabelled"},
    "pretrain": {"lr": 0.5},
    "finetune": {"task": "retrieval", "task_args": {"top": 5}},
}


@pytest.fixture
def talking(monkeypatch):
    monkeypatch.setattr(console.verbosity, "verbose", True)


def store(recipe: dict[str, Any], step: str = "decompose") -> None:
    """Make this the recipe of the artefact's only step."""
    file = Path("a/pela.json")
    document = json.loads(file.read_text())
    document["history"][0] |= {"recipe": recipe, "step": step}
    file.write_text(json.dumps(document))


def stored() -> dict[str, Any]:
    return resolved(Recipe.model_validate(FULL))


def evaluation(data: str | None = None) -> Evaluation:
    [request] = requests.evaluations(["a"], requests.EvalFlags(data=data))
    return request


@pytest.mark.parametrize("step", ["decompose", "pretrain", "finetune"])
def test_an_artefact_is_measured_as_its_recipe_says(artefact, step):
    store(stored(), step)
    recipe = Recipe.model_validate(FULL)
    section = getattr(recipe, step)
    request = evaluation()
    assert request.data == (section.data if step == "decompose" else recipe.data)
    assert (request.task, request.task_args) == task_of(recipe, section)


@pytest.mark.parametrize("step", ["decompose", "pretrain", "finetune", "distil"])
def test_keys_of_a_later_version_are_passed_over(artefact, step, talking, capsys):
    """Those that say what is measured are named."""
    document = stored()
    document["cache"] = {"size": 1}
    document[step] = (document.get(step) or {}) | {"colour": "blue"}
    data = (document[step].get("data") and document[step]) or document
    expected = Data.model_validate(data["data"])
    data["data"]["frames"] = 3
    data["data"]["augment"]["blur"] = 0.5
    store(document, step)
    assert evaluation().data == expected
    said = capsys.readouterr().err
    where = "history[0].recipe." + ("decompose." if step == "decompose" else "")
    assert f"note: a/pela.json: {where}data.frames: unknown to this pela" in said
    assert f"{where}data.augment.blur: unknown to this pela" in said
    assert "colour" not in said
    assert "cache" not in said


def test_what_is_not_about_data_can_not_stand_in_the_way(artefact):
    document = stored()
    before = Recipe.model_validate(FULL).data
    document["decompose"] = {"policy": "from the future", "ratio": [1, 2]}
    document |= {"pretrain": 3, "device": None, "seed": "none", "output": 5}
    store(document)
    assert evaluation().data == before


def test_without_data_the_task_need_not_be_readable(artefact):
    store(stored() | {"data": None, "task": 5}, "pretrain")
    assert evaluation().data is None


@pytest.mark.parametrize(
    ("step", "change", "says"),
    [
        ("pretrain", {"data": {"dataset": "d", "batch_size": "many"}},
         "data.batch_size: expected a whole number, not the text 'many'"),
        ("pretrain", {"data": {"val": "x"}}, "data.dataset: is missing"),
        ("pretrain", {"data": ["digits"]}, "data: expected a section, not a list"),
        ("pretrain", {"task": 5}, "task: expected text, not the number 5"),
        ("decompose", {"decompose": {"data": {"dataset": ""}}}, "decompose.data.dataset: is empty"),
        ("finetune", {"finetune": {"task_args": {"a": {}}}}, "finetune.task_args.a: "),
    ],
)  # fmt: skip
def test_unreadable_data_is_named_and_can_be_replaced(
    pela, artefact, step, change, says, talking, capsys
):
    store(stored() | change, step)
    code, out, err = pela("eval", "a")
    assert (code, out) == (2, "")
    assert f"a/pela.json: history[0].recipe.{says}" in err
    assert err.endswith(f"; {UPGRADE}, or give --data and --task\n")
    console.verbosity.verbose = True
    request = evaluation("digits")
    assert (request.data, request.task, request.task_args) == (Data(dataset="digits"), None, None)
    assert f"note: a/pela.json: history[0].recipe.{says}" in capsys.readouterr().err


def test_stored_keys_of_a_later_version_are_passed_over_in_a_plan(talking, capsys):
    section = {"max_rank": 8, "colour": "blue", "samples": 3}
    section_read = settings.from_stored(section, {"ratio": "0.4"}, "s")
    assert section_read.model_dump(exclude_unset=True) == {"ratio": "0.4", "max_rank": 8}
    assert "note: s: decompose.colour: unknown to this pela" in capsys.readouterr().err


def test_an_unreadable_stored_key_is_named_and_can_be_replaced():
    section = {"policy": "from the future", "min_rank": 2}
    with pytest.raises(RequestError) as error:
        settings.from_stored(section, {"ratio": "0.4"}, "s")
    assert str(error.value) == (
        "s: decompose.policy: 'from the future' is none of energy, uniform, threshold; "
        f"{UPGRADE}, or give --policy"
    )
    for flags, overrides in [
        ({"ratio": "0.4", "policy": "uniform"}, []),
        ({"ratio": "0.4"}, ["decompose.policy=uniform"]),
    ]:
        section_read = settings.from_stored(section, flags, "s", overrides)
        assert (section_read.policy, section_read.min_rank) == ("uniform", 2)
    with pytest.raises(RequestError, match=r"^--ratio: 7 is out of range"):
        settings.from_stored({"policy": "uniform"}, {"ratio": "7"}, "s")
    with pytest.raises(RequestError, match=r"^--max-rank: max_rank 1 is below min_rank 2"):
        settings.from_stored({"min_rank": 2}, {"ratio": "0.4", "max_rank": 1}, "s")
    with pytest.raises(RequestError, match=r"^--min-rank: max_rank 1 is below min_rank 2"):
        settings.from_stored({"max_rank": 1}, {"ratio": "0.4", "min_rank": 2}, "s")
    with pytest.raises(RequestError, match=r"^--set decompose.max_rank=1: max_rank 1 is below"):
        settings.from_stored({"min_rank": 2}, {"ratio": "0.4"}, "s", ["decompose.max_rank=1"])


def test_spectra_of_a_later_version_are_planned_from(pela, artefact):
    file = artefact / planning_stored.FILE
    spectra = planning_stored.load(file)
    code, plain, err = pela("decompose", "a", "--dry-run", "--ratio", "0.6", "--json")
    assert code == 0, err

    def keep(**section: object) -> None:
        about = spectra.about.model_copy(update={"section": spectra.about.section | section})
        planning_stored.save(replace(spectra, about=about), file)

    keep(colour="blue")
    code, out, err = pela("decompose", "a", "--dry-run", "--ratio", "0.6", "--json")
    assert code == 0, err
    assert json.loads(out)["layers"] == json.loads(plain)["layers"]
    keep(policy="from the future")
    for command in (
        ("decompose", "a", "--dry-run", "--ratio", "0.6"),
        ("report", "a", "--sweep", "0.9,0.6"),
    ):
        code, out, err = pela(*command)
        assert (code, out) == (2, "")
        assert err.startswith("pela: error: a/spectra.safetensors: decompose.policy: 'from the ")
        assert err.endswith(f"; {UPGRADE}, or give --policy\n")
