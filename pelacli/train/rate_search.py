"""The learning rate of a healing run, found by short trials on held-out samples.

How large a step a low-rank student bears depends on how good its start is: one that calibration has
brought near to its teacher is ruined by a rate at which one from a plain SVD learns. So each rate
is tried for a few updates from the same start, and the distance from the teacher decides.

The best of short trials is not the best rate of a long run: short runs favour gentle rates, because
the noise of their steps has less time to average out (short-horizon bias: Wu, Ren, Liao, Grosse
2018). So what is looked for is the largest rate that the student bears: after the trial it is not
much farther from its teacher than at its start. docs/log/healing-and-training.md has figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pelacli.recipe.training import Pretrain

from pelacli.train.checkpoint import NotFiniteError
from pelacli.train.criterion import Criterion

FIRST = 3e-5  # the rate that is tried first
_FACTOR = 3.0  # between a rate and the next
_LEAST, _MOST = 1e-7, 3e-3
_FEWEST_STEPS, _MOST_STEPS = 5, 50  # of a trial
_SHARE = 20  # a trial takes one of so many of the run's updates
_WARM_UP = 10  # … and the warm-up one of so many
# By so much of its start a trial may be worse: the distance from the teacher, or a task's metric.
_SLACK, _SLACK_OF_METRIC = 0.2, 0.02


@dataclass(frozen=True)
class Trial:
    """One rate, and the evaluation after a few updates with it."""

    lr: float
    metrics: Mapping[str, float]


def steps_of_trial(total: int) -> int:
    """Updates of each trial of a run of so many."""
    return min(total, max(_FEWEST_STEPS, min(_MOST_STEPS, total // _SHARE)))


@dataclass(frozen=True)
class Bearable:
    """What of trials counts as borne.

    Attributes:
        figure: name of what decides.
        worst: its value at which a rate is just borne.
        larger_is_better: of that figure.
    """

    figure: str
    worst: float
    larger_is_better: bool

    @classmethod
    def of(cls, criterion: Criterion, start: Mapping[str, float], share: float) -> Bearable | None:
        """By the evaluation of the start; None where it has no figure to judge by.

        Args:
            share: updates of a trial as a share of the run's, 0 to 1. A trial that is the whole run
                must not lose anything.
        """
        figure = criterion.main(start)
        if figure is None:
            return None
        larger_is_better = figure in criterion.larger
        slack = (1 - share) * (-_SLACK_OF_METRIC if larger_is_better else _SLACK)
        return cls(figure, start[figure] * (1 + slack), larger_is_better)

    def holds(self, metrics: Mapping[str, float]) -> bool:
        """Whether an evaluation is at least as good."""
        value = metrics.get(self.figure, math.nan)
        return value >= self.worst if self.larger_is_better else value <= self.worst


def most_trials() -> int:
    """How many rates `search` tries at most."""
    up, down = (math.floor(math.log(r, _FACTOR)) for r in (_MOST / FIRST, FIRST / _LEAST))
    return 1 + max(up, down)


def search(
    attempt: Callable[[float], Mapping[str, float]], bearable: Bearable
) -> tuple[float, list[Trial]]:
    """The largest rate that is borne, within a factor of 3, and all trials in order.

    It starts at `FIRST` and goes up as long as rates are borne, or down until one is. Where none
    is, the gentlest is taken.

    Args:
        attempt: trains from the start at a rate for a few updates and evaluates. One whose losses
            are not finite is not borne.
    """
    trials: list[Trial] = []

    def is_borne(lr: float) -> bool:
        try:
            metrics = attempt(lr)
        except NotFiniteError:
            metrics = {}
        trials.append(Trial(lr, metrics))
        return bearable.holds(metrics)

    lr = FIRST
    if is_borne(lr):
        while lr * _FACTOR <= _MOST and is_borne(lr * _FACTOR):
            lr *= _FACTOR
        return lr, trials
    while lr / _FACTOR >= _LEAST:
        lr /= _FACTOR
        if is_borne(lr):
            break
    return lr, trials


def settings_at(settings: Pretrain, lr: float, total: int, per_epoch: float) -> Pretrain:
    """The section with a rate in place of "auto", and with what goes with it.

    Args:
        total: updates of the run.
        per_epoch: updates of an epoch.
    """
    changed = {
        "lr": lr,
        "min_lr": min(settings.min_lr, lr / 100),
        "warmup_lr": min(settings.warmup_lr, lr / 100),
        "warmup_epochs": settings.warmup_epochs or total / _WARM_UP / per_epoch,
    }
    return settings.model_copy(update=changed)


def trial_settings(settings: Pretrain, lr: float, steps: int, per_epoch: float) -> Pretrain:
    """The section of a trial: the rate's schedule in so many updates, and nothing kept. It is
    evaluated when it is over, by whoever tries."""
    section = settings_at(settings.model_copy(update={"warmup_epochs": 0}), lr, steps, per_epoch)
    return section.model_copy(
        update={
            "steps": steps,
            "epochs": max(settings.epochs, (steps + 1) / per_epoch),
            "ema": None,
            "compile": False,
            "result": "last",
            "trackers": [],
        }
    )
