"""Where a run stands: steps, epochs, what is due, the best evaluation so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pelacli.recipe.schema import Train


@dataclass
class Run:
    """Where a run stands; this is what state.json holds.

    Attributes:
        total: updates of the whole run.
        batches: batches per epoch; ``accumulate`` of them make an update.
        step: updates done.
        evaluated: the step of the last evaluation, ``metrics`` what it gave.
        best: {"step": …, "value": …} of the main metric.
    """

    total: int
    seed: int
    batches: int
    accumulate: int
    step: int = 0
    evaluated: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] | None = None

    @property
    def epoch(self) -> float:
        return self.step * self.accumulate / self.batches

    def epochs(self, step: int) -> int:
        """Epochs that are over after so many steps."""
        return step * self.accumulate // self.batches

    def evaluation_due(self, every: int | None) -> bool:
        """Whether this step ends an epoch of which every so-many-th is evaluated, or the run."""
        if self.step == self.total or not every:
            return self.step == self.total
        return self.epochs(self.step) // every > self.epochs(self.step - 1) // every

    def save_due(self, every: int | None) -> bool:
        """Every so many steps, or at the end of epochs where it is not said; and at the end."""
        if self.step == self.total:
            return True
        if every:
            return self.step % every == 0
        return self.epochs(self.step) > self.epochs(self.step - 1)

    def improves(self, metric: str | None) -> bool:
        """Whether the last evaluation is the best so far, which is then noted."""
        value = self.metrics.get(metric) if metric else None
        if value is None or not math.isfinite(value):
            return False
        if self.best is not None and value <= self.best["value"]:
            return False
        self.best = {"step": self.step, "value": value}
        return True


def updates(settings: Train, batches: int) -> int:
    """Optimizer updates of a run over so many batches per epoch."""
    count: int = math.ceil(settings.epochs * batches / settings.accumulate - 1e-9)
    return count if settings.steps is None else min(count, settings.steps)
