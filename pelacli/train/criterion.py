"""Which of a run's evaluations is the best: of a few figures the first that differs decides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Criterion:
    """The order of evaluations.

    Args:
        larger: names of figures of which more is better, the one that decides first.
        smaller: names of figures of which less is better; they decide between evaluations that are
            alike in all of ``larger``.
    """

    larger: tuple[str, ...] = ()
    smaller: tuple[str, ...] = ()

    def main(self, metrics: Mapping[str, float]) -> str | None:
        """The first figure that an evaluation has; None where it has none of them."""
        return next((name for name in (*self.larger, *self.smaller) if name in metrics), None)

    def key(self, metrics: Mapping[str, float]) -> list[float]:
        """What is larger for a better evaluation, lists being compared entry by entry. A figure
        that is not a number counts as the worst. Empty where the evaluation has no such figure."""
        signed = [(name, 1.0) for name in self.larger] + [(name, -1.0) for name in self.smaller]
        values = [sign * metrics[name] for name, sign in signed if name in metrics]
        return [-math.inf if math.isnan(value) else value for value in values]
