"""Which layers a policy decides, which are settled before it, and what each part costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pelacli.ranks import reasons
from pelacli.ranks.budget import Budget
from pelacli.ranks.open_ranks import OpenRanks
from pelacli.ranks.pins import pinned_rank
from pelacli.ranks.plan import LayerPlan
from pelacli.ranks.policies import registry
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


def divide(spectra: Sequence[Spectrum], budget: Budget, fixed: int) -> Division:
    """Settle the layers that leave no choice, and open ranks for the others.

    Args:
        fixed: the cost of what no plan changes.
    """
    settled: dict[str, LayerPlan] = {}
    free: list[OpenRanks] = []
    total, pinned, dense = fixed, 0, 0
    for spectrum in sorted(spectra, key=lambda s: s.name):
        name, shape = spectrum.name, spectrum.shape
        dense_cost = spectrum.cost(None, budget.unit)
        total += dense_cost
        if name in budget.pins:
            rank = pinned_rank(budget.pins[name], shape)
            settled[name] = LayerPlan(shape, rank, reasons.PINNED_DENSE if rank is None else None)
            pinned += spectrum.cost(rank, budget.unit)
        elif (ranks := open_ranks(spectrum, budget)) is not None:
            free.append(ranks)
        else:
            reason = reasons.BREAK_EVEN if dense_cost else reasons.NEVER_APPLIED
            settled[name] = LayerPlan(shape, None, reason)
            dense += dense_cost
    lowest = sum(ranks.cost(ranks.low) for ranks in free)
    return Division(settled, free, Costs(fixed, pinned, dense, lowest, total))


def open_ranks(spectrum: Spectrum, budget: Budget) -> OpenRanks | None:
    """The ranks that are open to a layer; None where it can only be dense."""
    rank_cost, dense_cost = spectrum.cost(1, budget.unit), spectrum.cost(None, budget.unit)
    if not rank_cost:
        return None
    below_break_even = (dense_cost - 1) // rank_cost
    top = below_break_even if budget.max_rank is None else min(below_break_even, budget.max_rank)
    step = _step(budget, top)
    low = -(-budget.min_rank // step) * step
    if low > top:
        low, step = budget.min_rank, 1
    if low > top:
        return None
    high = low + (top - low) // step * step
    may_be_dense = budget.max_rank is None or budget.max_rank > below_break_even
    return OpenRanks(spectrum, rank_cost, dense_cost, low, high, step, may_be_dense)


def _step(budget: Budget, top: int) -> int:
    if budget.multiple is not None:
        return budget.multiple
    return _EIGHT if registry.get(budget.policy).EIGHTS and top >= _LARGE else 1
