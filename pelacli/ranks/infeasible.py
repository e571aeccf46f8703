"""The error for a budget that no plan can meet: what can be met, and what stands in the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pelacli.errors import InfeasibleError
from pelacli.ranks.budget import Budget, Unit
from pelacli.ranks.division import Costs
from pelacli.ranks.limit import Limit

_MOST_NAMED = 3  # owners of what no plan can touch


def impossible(
    limit: Limit, budget: Budget, costs: Costs, obstacles: Mapping[str, int]
) -> InfeasibleError:
    """The error for a limit that is below ``costs.least``.

    Args:
        obstacles: owner → its part of ``costs.fixed``.
    """
    because, is_an_owner_named = _because(budget.unit, costs, obstacles if costs.fixed else {})
    if costs.least > costs.total:
        message = f"{limit} cannot be met, nor any up to {limit.smallest(costs.total)}{because}"
        return InfeasibleError(message, None)
    smallest = limit.smallest(costs.least)
    offers_scope = is_an_owner_named and budget.ratio is not None
    return InfeasibleError(
        f"{limit} cannot be met: the smallest possible is {smallest}{because}"
        + ("; scope layers counts the factorised layers only" if offers_scope else ""),
        smallest,
    )


def _because(unit: Unit, costs: Costs, obstacles: Mapping[str, int]) -> tuple[str, bool]:
    """What holds 1 % of the total or more, in words; and whether it names an owner."""
    noun = {"params": "parameters", "flops": "FLOPs", "latency": "time"}[unit]

    def share(cost: int) -> str:
        return f"{100 * cost / costs.total:.1f} %"

    def is_large(cost: int) -> bool:
        return 100 * cost >= costs.total

    large = {owner: cost for owner, cost in obstacles.items() if is_large(cost)}
    owners = sorted(large, key=lambda owner: (-large[owner], owner))[:_MOST_NAMED]
    parts = []
    if owners:
        shares = [f"{owner} ({share(large[owner])})" for owner in owners]
        shares[0] = f"{owners[0]} ({share(large[owners[0]])} of the {noun})"
        parts.append(f"{_joined(shares)} {'is' if len(owners) == 1 else 'are'} not factorised")
    elif is_large(costs.fixed):
        verb = "is" if unit == "latency" else "are"
        parts.append(f"{share(costs.fixed)} of the {noun} {verb} not in factorised layers")
    if is_large(costs.pinned):
        parts.append(f"pins hold {share(costs.pinned)}")
    if unit == "latency" and is_large(costs.dense):
        parts.append(f"layers that no rank makes faster hold {share(costs.dense)}")
    if is_large(costs.lowest):
        parts.append(f"the layers at their lowest ranks hold {share(costs.lowest)}")
    return f", because {_joined(parts)}" if parts else "", bool(owners)


def _joined(parts: Sequence[str]) -> str:
    """One part, "a and b", or "a, b and c"."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
