"""Where a run stands: steps, epochs, what is due, the best evaluation so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pelacli.recipe.training import Train
    from pelacli.train.criterion import Criterion

_EVALUATIONS = 10  # in a run whose recipe does not say how often


@dataclass
class Run:
    """Where a run stands. A checkpoint's state.json holds these fields.

    Attributes:
        total: updates of the whole run.
        batches: batches per epoch, of which ``accumulate`` make an update.
        step: updates done.
        evaluated: the step of the last evaluation, ``metrics`` what it gave.
        start: what the evaluation before the first update gave; empty where there was none.
        best: {"step": …, "value": …, "key": …} of the best evaluation: the figure that decides
            first, and what evaluations are compared by.
    """

    total: int
    seed: int
    batches: int
    accumulate: int
    step: int = 0
    evaluated: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None

    @property
    def epoch(self) -> float:
        return self.step * self.accumulate / self.batches

    def epochs(self, step: int) -> int:
        """Epochs that are over after so many steps."""
        return step * self.accumulate // self.batches

    def evaluation_due(self, every: float | None) -> bool:
        """Whether the run is over, or the last update brought it to a multiple of ``every`` epochs,
        or past one. None: at each tenth of the run.

        It follows from the step alone, so a run that goes on evaluates where it would have.
        """
        if self.step == self.total or not self.step:
            return self.step == self.total
        if every is None:
            now, before = (step * _EVALUATIONS // self.total for step in (self.step, self.step - 1))
            return now > before
        exact = Fraction(str(every))  # 0.1 as it is written: ten of them are one epoch
        now, before = (
            Fraction(step * self.accumulate, self.batches) // exact
            for step in (self.step, self.step - 1)
        )
        return now > before

    def save_due(self, every: int | None) -> bool:
        """Whether the run is over, or ``every`` updates were made since the last checkpoint. None:
        at the end of every epoch."""
        if self.step == self.total:
            return True
        if every:
            return self.step % every == 0
        return self.epochs(self.step) > self.epochs(self.step - 1)

    def improves(self, criterion: Criterion) -> bool:
        """Whether the last evaluation is the best so far. If so, ``best`` becomes this one."""
        main, key = criterion.main(self.metrics), criterion.key(self.metrics)
        if main is None or not math.isfinite(self.metrics[main]):
            return False
        if self.best is not None and key <= self.best["key"]:
            return False
        self.best = {"step": self.step, "value": self.metrics[main], "key": key}
        return True


def updates(settings: Train, batches: int) -> int:
    """Optimizer updates of a run, by the number of batches per epoch."""
    count: int = math.ceil(settings.epochs * batches / settings.accumulate - 1e-9)
    return count if settings.steps is None else min(count, settings.steps)
