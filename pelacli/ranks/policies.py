"""The policies: which of its possible ranks each layer gets. Plain functions on numbers.

`pelacli.ranks.planner.plan` prepares their input and makes a plan of their answer. An answer is one
rank per layer, None where the layer stays dense. Costs are integers in one unit (parameters, or
FLOPs) and every comparison with a budget is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pelacli.ranks.choices import Choice, shares


def uniform(choices: Sequence[Choice], limit: int, ratio: Fraction | None) -> list[int | None]:
    """The paper's ranks, r = floor(q · in · out / (in + out)), with one ratio q for all layers.

    q is ``ratio`` where that is given and its ranks cost at most ``limit`` (pins and minimum
    ranks can forbid it), else the largest that does. At q = 1 layers are dense. Ranks are rounded
    down to the step and kept between low and high.

    Source: PELA (arXiv 2310.10700), reference code ``low_rank.py``, with c = 1/q.
    """

    def ranks_at(q: Fraction) -> list[int | None]:
        found: list[int | None] = []
        for c in choices:
            if q >= 1 and c.open_end:
                found.append(None)
                continue
            rank = q.numerator * c.dense // (q.denominator * c.cost)
            rank = c.low + (rank - c.low) // c.step * c.step
            found.append(max(c.low, min(rank, c.high)))
        return found

    def fits(q: Fraction) -> bool:
        return sum(c.price(r) for c, r in zip(choices, ranks_at(q), strict=True)) <= limit

    top = Fraction(1) if ratio is None else ratio
    if fits(top):
        return ranks_at(top)
    # Ranks change only where q · dense is a multiple of cost for some layer, so at fractions
    # with denominators up to the largest `dense`; two such fractions differ by 1/largest² at
    # least. Once the bracket is narrower, the ranks at its lower end are those of the largest q.
    largest = max(c.dense for c in choices)
    low, high = Fraction(0), top
    while (high - low) * largest * largest >= 1:
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return ranks_at(low)


def threshold(choices: Sequence[Choice], share: float) -> list[int | None]:
    """Each layer's smallest rank that keeps at least ``share`` (0 to 1) of its energy.

    Ranks are rounded up to the step. A layer whose rank would pass ``high`` goes dense, or stays
    at ``high`` where a maximum rank forbids dense. A layer without energy gets its lowest rank.
    """
    found: list[int | None] = []
    for c in choices:
        rank = max(c.low, int(np.searchsorted(shares(c.energies), share)))
        rank = c.low - (c.low - rank) // c.step * c.step
        found.append(rank if rank <= c.high else (None if c.open_end else c.high))
    return found


def energy(choices: Sequence[Choice], limit: int) -> list[int | None]:
    """The ranks that keep the most energy of all layers together at a cost of at most ``limit``.

    From its lowest rank a layer grows by items: a block of ``step`` ranks, or the jump from some
    rank to dense, which keeps all the rest for less than its ranks would cost. The items of all
    layers are bought in order of density (energy / cost), the best first. What does not fit is
    left out, and later items that fit use up what remains. Items without energy are not bought.

    A layer's blocks come in falling density, as its energies fall. The jump starts where its
    density is between that of the blocks before and after, which is where it is lowest: so each
    layer's items trace the upper hull of its (cost, energy) points, and buying by density is
    optimal up to the one item that did not fit. Where a jump does not fit, the blocks behind
    its start take its place.

    Ties go to the layer that comes first, so callers sort the layers by name.
    """
    return _buy(choices, _hull(choices), limit)


def least(
    choices: Sequence[Choice], enough: Callable[[list[int | None]], bool]
) -> list[int | None] | None:
    """The ranks of `energy` at the smallest limit at which they are enough.

    With one more unit to spend `energy` never keeps less: the first item that it buys and did not
    before takes all that was left for what comes behind it, at a better density. So bisection
    finds the smallest limit, and `energy` at the cost of the answer gives the answer again.

    Args:
        enough: whether ranks will do; true of all that keep more energy than some that do.

    Returns:
        None where even the ranks that keep the most are not enough.
    """
    if not choices:
        return [] if enough([]) else None
    hull = _hull(choices)
    low = sum(c.price(c.low) for c in choices) - 1  # too little for any ranks
    high = sum(c.dense for c in choices)
    found = _buy(choices, hull, high)
    if not enough(found):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        ranks = _buy(choices, hull, middle)
        if enough(ranks):
            found, high = ranks, sum(c.price(r) for c, r in zip(choices, ranks, strict=True))
        else:
            low = middle
    return found


# Items in the order of buying: cost, owner, whether a jump, whether waiting; see `_items`.
_Hull = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]


def _hull(choices: Sequence[Choice]) -> _Hull:
    density, cost, owner, jump, waiting = _items(choices)
    # Each layer's items lie in order and stay so: the sort is stable and their density falls.
    order = np.argsort(-density, kind="stable")
    order = order[density[order] > 0]
    return cost[order], owner[order], jump[order], waiting[order]


def _buy(choices: Sequence[Choice], hull: _Hull, limit: int) -> list[int | None]:
    left = limit - sum(c.price(c.low) for c in choices)
    cost, owner, jump, waiting = hull
    waiting = waiting.copy()
    bought = np.zeros(len(cost), bool)
    live = np.flatnonzero(~waiting)
    while len(live):
        spent = np.cumsum(cost[live])
        n = int(np.searchsorted(spent, left, side="right"))
        bought[live[:n]] = True
        left -= int(spent[n - 1]) if n else 0
        live = live[n:]
        # What is too dear now stays too dear. Where it is a block, its layer's jump (from a rank
        # that it will not reach) goes too; where it is a jump, the waiting blocks come in.
        closed = np.zeros(len(choices), bool)
        closed[owner[live[cost[live] > left]]] = True
        back = np.flatnonzero(waiting & closed[owner])
        waiting[back] = False
        live = np.concatenate([live[~(jump[live] & closed[owner[live]])], back])
        live = np.sort(live[cost[live] <= left])

    blocks_bought = np.bincount(owner[bought & ~jump], minlength=len(choices))
    dense = np.zeros(len(choices), bool)
    dense[owner[bought & jump]] = True
    return [
        None if full else c.low + c.step * int(k)
        for c, k, full in zip(choices, blocks_bought, dense, strict=True)
    ]


def _items(
    choices: Sequence[Choice],
) -> tuple[
    NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]
]:
    """What can be bought, layer by layer in order: density, cost, index of the layer, whether it
    is a jump to dense, and whether it is a block that waits for the jump before it to fail."""
    densities, costs, places, starts = [], [], [], []
    for c in choices:
        blocks = c.energies[c.low : c.high].reshape(-1, c.step).sum(axis=1)
        price = c.step * c.cost
        density, n = blocks / price, len(blocks)
        cost = np.full(n + c.open_end, price, np.int64)
        start = n + 1  # no jump
        if c.open_end:
            rest = c.energies[c.high :].sum()
            tails = np.concatenate([np.cumsum(blocks[::-1])[::-1] + rest, [rest]])
            prices = c.dense - c.cost * c.low - price * np.arange(n + 1)
            slopes = tails / prices
            start = n - int(np.argmin(slopes[::-1]))  # the last of equals: a smaller jump
            # Rounding must not put the jump out of order.
            lower = density[start] if start < n else 0.0
            upper = density[start - 1] if start else np.inf
            slope = min(max(slopes[start], lower), upper)
            density = np.concatenate([density[:start], [slope], density[start:]])
            cost[start] = prices[start]
        densities.append(density)
        costs.append(cost)
        places.append(np.arange(len(density)))
        starts.append(start)
    counts = [len(density) for density in densities]
    place, start_of = np.concatenate(places), np.repeat(starts, counts)
    return (
        np.concatenate(densities),
        np.concatenate(costs),
        np.repeat(np.arange(len(choices)), counts),
        place == start_of,
        place > start_of,
    )
