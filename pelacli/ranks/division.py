"""Which layers a policy decides, which are settled before it, and what each part costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pelacli.ranks import reasons
from pelacli.ranks.budget import Budget
from pelacli.ranks.open_ranks import OpenRanks
from pelacli.ranks.pins import pinned_rank
from pelacli.ranks.plan import LayerPlan
from pelacli.ranks.policies import registry
from pelacli.ranks.prices import Prices
from pelacli.ranks.spectrum import Spectrum

# GPUs multiply half-precision matrices in vectors of eight: a rank of 307 takes their slow kernels
# (docs/log/gpus-and-launchers.md). A large layer does not miss what it rounds off.
_EIGHT, _LARGE = 8, 64


@dataclass(frozen=True)
class Costs:
    """What the parts of a model cost, in the budget's unit.

    Attributes:
        fixed: what no plan changes; 0 where the scope leaves it out.
        pinned: the pinned layers.
        dense: the layers that are dense because no rank is open to them.
        lowest: the free layers at their lowest ranks.
        total: all of it while it is dense.
    """

    fixed: int
    pinned: int
    dense: int
    lowest: int
    total: int

    @property
    def settled(self) -> int:
        """What is spent whatever the policy decides."""
        return self.fixed + self.pinned + self.dense

    @property
    def least(self) -> int:
        """What the smallest possible plan costs."""
        return self.settled + self.lowest


@dataclass(frozen=True)
class Division:
    """The layers that may be factorised.

    Attributes:
        settled: layer → what becomes of it: it is pinned, or no rank is open to it.
        free: the other layers with the ranks that are open to them, sorted by name.
    """

    settled: dict[str, LayerPlan]
    free: list[OpenRanks]
    costs: Costs


def divide(spectra: Sequence[Spectrum], budget: Budget, fixed: int, prices: Prices) -> Division:
    """Settle the layers that leave no choice, and open ranks for the others.

    Args:
        fixed: the cost of what no plan changes.
        prices: in the budget's unit.
    """
    settled: dict[str, LayerPlan] = {}
    free: list[OpenRanks] = []
    total, pinned, dense = fixed, 0, 0
    for spectrum in sorted(spectra, key=lambda s: s.name):
        name, shape = spectrum.name, spectrum.shape
        dense_cost = prices.dense(spectrum)
        total += dense_cost
        if name in budget.pins:
            settled[name] = _pinned(spectrum, budget, prices)
            pinned += prices.of(spectrum, settled[name].rank, settled[name].form)
        elif (ranks := open_ranks(spectrum, budget, prices)) is not None:
            free.append(ranks)
        else:
            settled[name] = LayerPlan(shape, None, _why_dense(dense_cost, budget))
            dense += dense_cost
    lowest = sum(ranks.cost(ranks.low) for ranks in free)
    return Division(settled, free, Costs(fixed, pinned, dense, lowest, total))


def open_ranks(spectrum: Spectrum, budget: Budget, prices: Prices) -> OpenRanks | None:
    """The ranks that are open to a layer; None where it can only be dense.

    A rank that costs no less than a higher one or than dense is left out.
    """
    choice, dense_cost = budget.forms_of(spectrum.name), prices.dense(spectrum)
    costs, forms = prices.cheapest(spectrum, np.arange(min(spectrum.shape)), choice)
    below_dense = np.flatnonzero(costs < dense_cost)
    if not len(below_dense):
        return None
    highest = int(below_dense[-1])
    top = highest if budget.max_rank is None else min(highest, budget.max_rank)
    step = _step(budget, top)
    low = -(-budget.min_rank // step) * step
    if low > top:
        low, step = budget.min_rank, 1
    ranks = np.arange(low, top + 1, step)
    ranks = ranks[_cheaper_than_all_behind(np.append(costs[ranks], dense_cost))[:-1]]
    if not len(ranks):
        return None
    may_be_dense = budget.max_rank is None or budget.max_rank > highest
    return OpenRanks(spectrum, ranks, costs[ranks], dense_cost, may_be_dense, forms[ranks], choice)


def _cheaper_than_all_behind(costs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of each cost whether all that come later are higher."""
    cheapest_from = np.minimum.accumulate(costs[::-1])[::-1]
    return np.append(costs[:-1] < cheapest_from[1:], True)


def _step(budget: Budget, top: int) -> int:
    if budget.multiple is not None:
        return budget.multiple
    return _EIGHT if registry.get(budget.policy).EIGHTS and top >= _LARGE else 1


def _pinned(spectrum: Spectrum, budget: Budget, prices: Prices) -> LayerPlan:
    """What a pin makes of a layer: its form is the cheaper one that it may take."""
    rank = pinned_rank(budget.pins[spectrum.name], spectrum.shape)
    if rank is None:
        return LayerPlan(spectrum.shape, None, reasons.PINNED_DENSE)
    choice = budget.forms_of(spectrum.name)
    _, cheapest = prices.cheapest(spectrum, np.array([rank]), choice)
    return LayerPlan(spectrum.shape, rank, form=choice[cheapest[0]])


def _why_dense(dense_cost: int, budget: Budget) -> str:
    """Why no rank is open to a layer."""
    if not dense_cost:
        return reasons.NEVER_APPLIED
    return reasons.NOT_FASTER if budget.unit == "latency" else reasons.BREAK_EVEN
