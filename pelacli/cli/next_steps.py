"""What to do after a command, in a line on standard error."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pelacli.steps.pipeline import Outcome

from pelacli import console
from pelacli.manifest import document
from pelacli.recipe.decompose import Decompose
from pelacli.recipe.schema import Recipe
from pelacli.recipe.step import Step

_DATA = "YOUR_DATA"


def after_decompose(model: str, step: Step[Decompose]) -> None:
    """The rest of a recipe, or else the comparison with the dense model."""
    if model.endswith(".toml"):
        _say("run", model)
        return
    weights = step.opening.weights
    how = [] if weights == "pretrained" else ["--weights", weights]
    data = _DATA if step.calibration is None else step.calibration.data.dataset
    _say("eval", str(step.output), "--against", model, *how, "--data", data)


def after_training(recipe_file: Path, recipe: Recipe, section: str) -> None:
    """The recipe's next step; after the last one its evaluation."""
    commands = {"pretrain": "heal"}
    order = ["decompose", "pretrain", "finetune"]
    later = order[order.index(section) + 1 :] if section in order else order
    following = next((name for name in later if getattr(recipe, name) is not None), "eval")
    _say(commands.get(following, following), str(recipe_file))


def after_measuring(refs: Sequence[str]) -> None:
    """The page of the artefacts that were measured."""
    known = [ref for ref in refs if document.is_artefact(ref)]
    if known:
        _say("report", *known, "--html", "report.html")


def after_run(steps: Sequence[Outcome]) -> None:
    """The page of a recipe's artefacts."""
    if steps:
        _say("report", str(Path(steps[-1].artefact).parent), "--html", "report.html")


def _say(*words: str) -> None:
    console.info(f"next: {shlex.join(('pela', *words))}")
