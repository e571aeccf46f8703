"""The paper's policy: one ratio for all layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from pelacli.ranks.policies.base import Ranks, Target

if TYPE_CHECKING:
    from pelacli.ranks.open_ranks import OpenRanks

BUDGETS = ("ratio",)
EIGHTS = False  # the paper's formula has its ranks as they come
ANY_FORM = False  # the paper has factors


def choose(layers: Sequence[OpenRanks], target: Target) -> Ranks:
    """The paper's ranks, r = floor(q · in · out / (in + out)), with one ratio q for all layers.

    In another form it is the largest rank that costs at most q times the dense layer.

    q is the target's ratio where that is given and its ranks keep to the limit (pins and minimum
    ranks can forbid it), else the largest that does. At q = 1 layers are dense. Ranks are rounded
    down to the step and kept between low and high.

    Source: PELA (arXiv 2310.10700), reference code ``low_rank.py``, with c = 1/q.
    """
    limit = target.limit
    assert limit is not None

    def fits(q: Fraction) -> bool:
        ranks = _ranks_at(q, layers)
        costs = (layer.cost(rank) for layer, rank in zip(layers, ranks, strict=True))
        return sum(costs) <= limit

    largest = target.ratio or Fraction(1)
    q = largest if fits(largest) else _last_that_fits(fits, largest, layers)
    return _ranks_at(q, layers)


def _ranks_at(q: Fraction, layers: Sequence[OpenRanks]) -> Ranks:
    return [
        None
        if q >= 1 and layer.may_be_dense
        else layer.within(q.numerator * layer.dense_cost // q.denominator)
        for layer in layers
    ]


def _last_that_fits(
    fits: Callable[[Fraction], bool], too_large: Fraction, layers: Sequence[OpenRanks]
) -> Fraction:
    """A ratio whose ranks are those of the largest ratio that fits.

    Ranks change only where q · dense_cost is a whole number for some layer, so at fractions with
    denominators up to the largest dense_cost. Two such fractions differ by at least
    1 / largest². Once the bracket is narrower than that, the ranks at its lower end are the answer.
    """
    largest = max(layer.dense_cost for layer in layers)
    low, high = Fraction(0), too_large
    while (high - low) * largest * largest >= 1:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
