"""An evaluation: which model to measure, on what, and what to compare it with, resolved once. No
look at the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pelacli.recipe.data import Data
from pelacli.recipe.step import Opening


@dataclass(frozen=True)
class NamedModel:
    """A model as the user names it: an artefact, a run directory (its last step), or a model.

    Attributes:
        opening: how to open it where it is no artefact.
    """

    ref: str
    opening: Opening = field(default_factory=Opening)


@dataclass(frozen=True)
class Evaluation:
    """What `pelacli.steps.eval.run` measures.

    Attributes:
        baseline: the model to compare with, usually the dense one.
        data: where the samples come from; None measures size and latency only.
        split, batch_size: in place of the data's own.
        task: name of the task; None takes classification where the data has labels for it.
        task_args: its settings.
        task_is_named: whether this evaluation names the task. A task that a recipe has by default,
            or that an earlier step had, is left out for a model that has no output for it.
        max_drop: the most points that the model may be behind the baseline: of the main metric, or
            where there are no labels of their agreement (`pelacli.measure.agreement.in_points`).
        latency: whether to time the forward pass.
        device: as in a recipe.
    """

    model: NamedModel
    baseline: NamedModel | None = None
    data: Data | None = None
    split: str | None = None
    batch_size: int | None = None
    task: str | None = None
    task_args: Mapping[str, Any] | None = None
    task_is_named: bool = True
    max_drop: float | None = None
    latency: bool = True
    device: str = "auto"
