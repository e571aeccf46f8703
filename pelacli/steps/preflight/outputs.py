"""Whether the steps of a recipe can write what they make."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pelacli.artefact import saving
from pelacli.errors import RequestError
from pelacli.recipe import layout
from pelacli.recipe.schema import Recipe
from pelacli.recipe.step import Step
from pelacli.recipe.training import Train
from pelacli.steps.preflight.problems import Problems
from pelacli.system import files, memory

_FLOAT = 4  # bytes
_COPIES = 3  # of the weights in a checkpoint: themselves, and the optimizer's two averages


def check_outputs(problems: Problems, recipe: Recipe, steps: Sequence[Step[Any]]) -> None:
    """Look whether each step may write its artefact, and the folder that it works in."""
    for step in steps:
        with problems.at(("output",)):
            saving.check_output(step.output, step.source)
            work = layout.workplace(step.output)
            if work.exists() and not work.is_dir():
                raise RequestError(
                    f"{work}: is a file, and {step.name} keeps its checkpoints there; move it away"
                )
            files.check_place(work / "checkpoints")


def check_disk(problems: Problems, recipe: Recipe, steps: Sequence[Step[Any]], params: int) -> None:
    """Look whether the disk has room for what the steps write.

    Args:
        params: of the dense model, more than a step's artefact has.
    """
    above = next(path for path in Path(recipe.output).absolute().parents if path.exists())
    free = shutil.disk_usage(above).free
    small = 0.0  # of the smallest model that may come of it: what is surely needed
    kept = 0
    for step in steps:
        share = 1.0 if step.name == "teacher" else float(_ratio(recipe))
        small += params * share * _FLOAT
        if isinstance(step.settings, Train):
            copies = _COPIES * min(step.settings.keep, 2)
            kept = max(kept, int(params * share * _FLOAT * copies))
    need = small + kept
    if need > free:
        problems.add(
            ("output",),
            f"{recipe.output}: artefacts and checkpoints need about {memory.text(need)}, and "
            f"{memory.text(free)} are free on its disk; free some, or choose another output",
        )


def _ratio(recipe: Recipe) -> float:
    """A guess at the share of the parameters that the low-rank model has."""
    if recipe.decompose is None or recipe.decompose.budget is None:
        return 0.5
    return float(recipe.decompose.budget)
