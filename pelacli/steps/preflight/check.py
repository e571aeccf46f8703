"""The whole look: models, data and outputs of a recipe's steps, in the order in which they run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pelacli.console import progress, warn
from pelacli.errors import PelaError, RequestError
from pelacli.manifest import lookup
from pelacli.models.opened import OpenModel
from pelacli.recipe.keys import dotted
from pelacli.recipe.schema import Recipe
from pelacli.recipe.step import Step, opening_of, steps_of
from pelacli.steps.preflight import outputs, shapes, tasks
from pelacli.steps.preflight.problems import PlaceOf, Problems
from pelacli.steps.preflight.walk import Walk
from pelacli.system import devices


def check(
    recipe: Recipe, place_of: PlaceOf = dotted, only: Collection[str] | None = None
) -> list[str]:
    """Look for what the steps of a recipe will need.

    What only a network could tell is noted where there is none, or where it would be fetched.

    Args:
        place_of: key → its place and name, which begin a message.
        only: the sections to look at; None: all.

    Returns:
        Lines about what the recipe leaves open and pela chooses: "device: cpu".

    Raises:
        RequestError: what is wrong, by its place and key; several such things at once.
    """
    problems = Problems(place_of)
    judged = recipe.eval is not None and (only is None or "eval" in only)
    with problems.at(("device",)):
        problems.chosen.append(f"device: {devices.select(recipe.device).type}")
    if len(problems):  # all else is looked at as on the device that there is
        recipe = recipe.model_copy(update={"device": "auto"})
    steps = [step for step in steps_of(recipe) if only is None or step.name in only]
    outputs.check_outputs(problems, recipe, steps)
    before = len(problems)
    tasks.check(problems, recipe, steps, judged)
    if len(problems) > before:  # nothing can be opened without its task
        problems.refuse()
    with progress("looking at the model and the data"):
        walk = _opened(problems, recipe, steps)
        if walk is not None:
            for step in steps:
                walk.go(step)
            if judged:
                walk.judge()
    problems.refuse()
    return problems.chosen


def _opened(problems: Problems, recipe: Recipe, steps: list[Step[Any]]) -> Walk | None:
    """Where the first step starts; None where its model can't be looked at."""
    dense = None
    with problems.at(("model",)):
        try:
            dense = shapes.of(recipe.model, opening_of(recipe))
            outputs.check_disk(problems, recipe, steps, dense.params)
        except RequestError:
            raise
        except PelaError as error:
            warn(f"{problems.place_of(('model',))}: not looked at, nor are the data: {error}")
    if dense is None:
        return None
    with problems.at((steps[0].name,) if steps else ("model",)):
        return Walk(problems, recipe, dense, _start(recipe, steps, dense))
    return None


def _start(recipe: Recipe, steps: list[Step[Any]], dense: OpenModel) -> OpenModel:
    """What the first of the steps starts from: an artefact that is there, or the recipe's model."""
    source = steps[0].source if steps else recipe.model
    if source == recipe.model:
        return shapes.copied(dense)
    return shapes.of(lookup.require(source, steps[0].name), opening_of(recipe))
