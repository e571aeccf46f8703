"""What a killed training leaves: its checkpoints go on with the same recipe, and with no other."""

from __future__ import annotations

import os
import shutil

import pytest
from tiny_healing import decomposed

from pelacli.errors import RequestError
from pelacli.manifest import digests
from pelacli.recipe import layout
from pelacli.recipe.schema import Recipe
from pelacli.recipe.step import step_of
from pelacli.steps import outputs, pipeline, pretrain
from pelacli.system import leftovers, locks
from pelacli.train import checkpoint


class KilledError(Exception):
    """Ends a run as kill -9 would, as far as files are concerned."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    return decomposed(tmp_path_factory.mktemp("outputs"), steps=2, lr=1e-3, result="last")


@pytest.fixture
def killed_at_the_end(recipe, monkeypatch):
    """A run whose artefact is written and whose working folder is still there."""
    output = step_of(recipe, "pretrain").output
    for path in (output, layout.workplace(output)):
        shutil.rmtree(path, ignore_errors=True)

    discard = leftovers.discard

    def killed(path):
        if path == layout.workplace(output):
            raise KilledError
        discard(path)

    monkeypatch.setattr(leftovers, "discard", killed)
    with pytest.raises(KilledError):
        pretrain.run(step_of(recipe, "pretrain"))
    monkeypatch.undo()
    assert checkpoint.steps(layout.workplace(output))
    return output


def with_rate(recipe: Recipe, lr: float) -> Recipe:
    document = recipe.model_dump(mode="json", exclude_unset=True)
    return Recipe.model_validate(document | {"pretrain": document["pretrain"] | {"lr": lr}})


def test_a_finished_runs_folder_does_not_stand_in_another_recipes_way(recipe, killed_at_the_end):
    before = digests.weights_digest(killed_at_the_end)
    pipeline.run(with_rate(recipe, 3e-3))
    assert digests.weights_digest(killed_at_the_end) != before
    assert not layout.workplace(killed_at_the_end).exists()


def test_a_step_that_is_done_is_tidied(recipe, killed_at_the_end):
    draft = leftovers.draft(killed_at_the_end)
    draft.mkdir()
    os.utime(draft, (0, 0))  # from before this process
    [_, step] = pipeline.run(recipe).steps
    assert step.skipped
    assert sorted(p.name for p in killed_at_the_end.parent.iterdir()) == ["decompose", "pretrain"]


def test_checkpoints_of_nobody_knows_which_recipe_are_refused(recipe, killed_at_the_end):
    work = layout.workplace(killed_at_the_end)
    (work / outputs.FINGERPRINT).unlink()
    for resume in (True, False):
        with pytest.raises(RequestError, match=r"pretrain\.training: .*nobody knows which"):
            pretrain.run(step_of(recipe, "pretrain"), resume=resume)
    assert checkpoint.steps(work)


def test_two_runs_of_one_output_do_not_meet(recipe):
    output = step_of(recipe, "pretrain").output
    with locks.holding(output), pytest.raises(locks.LockedError, match="is writing there"):
        pretrain.run(step_of(recipe, "pretrain"))
    with locks.holding(output.parent), pytest.raises(locks.LockedError):
        pipeline.run(with_rate(recipe, 5e-3))
