"""The most energy of all layers together for a limit, or the lowest cost for a share of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pelacli.errors import RequestError
from pelacli.ranks import ratio
from pelacli.ranks.policies.base import Ranks, Target

if TYPE_CHECKING:
    from pelacli.ranks.hull import Hull
    from pelacli.ranks.open_ranks import OpenRanks

BUDGETS = ("ratio", "energy")
EIGHTS = True
ANY_FORM = True


def choose(layers: Sequence[OpenRanks], target: Target) -> Ranks:
    """The ranks that keep the most energy within the limit; or the cheapest that keep a share.

    Raises:
        RequestError: no ranks keep the share.
    """
    # The policies are listed for every recipe that is read, and NumPy would double that time.
    from pelacli.ranks.hull import upper_hull
    from pelacli.ranks.spectrum import share_kept

    hull = upper_hull(layers)
    if target.energy is None:
        assert target.limit is not None
        return hull.buy(target.limit)
    share = target.energy

    def kept(ranks: Ranks) -> float:
        free = zip((layer.spectrum for layer in layers), ranks, strict=True)
        return share_kept([*target.settled, *free])

    ranks = least(hull, lambda ranks: kept(ranks) >= share)
    if ranks is None:
        most = ratio.rounded_down(kept([layer.largest for layer in layers]))
        raise RequestError(
            f"energy {share:g} cannot be kept: with these pins and largest ranks it is "
            f"{most} at most; ask for less, or free some layers"
        )
    return ranks


def least(hull: Hull, enough: Callable[[Ranks], bool]) -> Ranks | None:
    """The ranks that are bought with the smallest limit at which they are enough.

    With one more unit to spend the ranks that are bought never keep less energy, as
    `pelacli.ranks.hull` says. So bisection finds the smallest limit. To buy for the cost of the
    answer gives the answer again: what it bought still fits, and what did not fit still does not.

    Args:
        enough: whether ranks will do; true of all that keep more energy than some that do.

    Returns:
        None where even the ranks that keep the most are not enough.
    """
    low, high = hull.lowest_cost - 1, hull.largest_cost  # too little for any ranks; enough for all
    answer = hull.buy(high)
    if not enough(answer):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        ranks = hull.buy(middle)
        if enough(ranks):
            answer, high = ranks, hull.cost(ranks)
        else:
            low = middle
    return answer
