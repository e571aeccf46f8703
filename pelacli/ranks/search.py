"""The smallest budget with which a model loses little enough, in a handful of evaluations.

The search is for the point where a curve crosses a line, on whole numbers. A *limit* is a budget.
Its plan has a *cost*, which it really spends, and has *lost* some energy: both are cheap to know.
Its *drop* is what an evaluation says, and is dear. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, inf, log


@dataclass(frozen=True)
class Trial:
    """One evaluated budget.

    Attributes:
        limit: what was planned for.
        cost: what that plan spends, at most the limit.
        lost: energy that the plan drops, in any unit.
        drop: what the evaluation says.
        accepted: whether that is little enough.
    """

    limit: int
    cost: int
    lost: float
    drop: float
    accepted: bool


def walk(
    evaluate: Callable[[int], float],
    foresee: Callable[[int], tuple[int, float]],
    *,
    least: int,
    whole: int,
    max_drop: float,
    evaluations: int,
    tolerance: int,
) -> list[Trial]:
    """Look for the smallest budget whose drop is at most ``max_drop``.

    The search keeps a bracket: its upper end is the smallest accepted cost (at first the dense
    model's, ``whole``, with drop 0), its lower end the largest refused limit below that. The next
    limit is guessed from the energy lost, as the drop follows it roughly as a power. The guess is
    kept so near the middle that halving could still narrow the bracket to the tolerance with the
    evaluations that are left. So that is reached for any curve, if whole − least is at most
    2^evaluations tolerances.

    The drop need not fall steadily as the limit grows: the answer is the cheapest trial that was
    accepted, even if a smaller limit might be accepted too.

    Args:
        evaluate: limit → drop.
        foresee: limit → (cost, lost) of its plan. A smaller limit never costs more or loses less.
        least: the smallest possible limit.
        whole: the cost of the dense model.
        max_drop: the largest drop that is accepted.
        evaluations: how many there may be.
        tolerance: end when the bracket is no wider.

    Returns:
        The trials in order; none of them accepted where nothing below ``whole`` will do.
    """
    trials: list[Trial] = []
    accepted = Trial(whole, whole, 0.0, 0.0, True)
    low = least - 1
    while len(trials) < evaluations and accepted.cost - low > tolerance:
        acceptable = _acceptable_loss(trials, max_drop)
        limit = (low + accepted.cost) // 2
        if acceptable is not None:
            limit = _smallest_limit(foresee, acceptable, low, accepted.cost)
        evaluations_left = evaluations - len(trials) - 1
        limit = _near_the_middle(limit, low, accepted.cost, tolerance, evaluations_left)
        cost, lost = foresee(limit)
        if cost <= low:  # the same plan was refused before
            low = limit
            continue
        drop = evaluate(limit)
        trial = Trial(limit, cost, lost, drop, drop <= max_drop)
        trials.append(trial)
        if trial.accepted:
            accepted = trial
        else:
            low = limit
    return trials


def best(trials: Sequence[Trial]) -> Trial | None:
    """The cheapest accepted trial."""
    return min((t for t in trials if t.accepted), key=lambda t: t.cost, default=None)


def _acceptable_loss(trials: Sequence[Trial], max_drop: float) -> float | None:
    """The lost energy at which the drop is expected to be ``max_drop``; None where no trial helps.

    A power law through the two trials whose drops are nearest to it; a proportion through one.
    """
    if max_drop <= 0:
        return None
    known = [t for t in trials if 0 < t.drop < inf and t.lost > 0]
    known.sort(key=lambda t: abs(log(t.drop) - log(max_drop)))  # a quotient could be zero
    if not known:
        return None
    near, power = known[0], 1.0
    far = next((t for t in known if t.lost != near.lost), near)
    gap = log(far.lost) - log(near.lost)
    if gap:
        slope = (log(far.drop) - log(near.drop)) / gap
        if slope > 0:  # else it is noise
            power = min(max(slope, 0.25), 4.0)
    exponent = log(near.lost) + (log(max_drop) - log(near.drop)) / power
    return exp(exponent) if exponent < 700 else inf


def _smallest_limit(
    foresee: Callable[[int], tuple[int, float]], acceptable: float, low: int, high: int
) -> int:
    """The smallest limit above ``low``, at most ``high``, whose plan loses no more than that."""
    while high - low > 1:
        middle = (low + high) // 2
        if foresee(middle)[1] <= acceptable:
            high = middle
        else:
            low = middle
    return high


def _near_the_middle(limit: int, low: int, high: int, tolerance: int, left: int) -> int:
    """The limit, moved to where ``left`` more evaluations can finish in either part of the bracket.

    One evaluation halves the bracket at worst, so a part may be ``tolerance`` · 2^left wide.
    """
    # A guess close to an end says that the bracket can be closed there: try that in one evaluation.
    if limit - low < tolerance:
        limit = low + tolerance
    elif high - limit < tolerance:
        limit = high - tolerance
    widest = tolerance << left
    too_wide = high - low > 2 * widest
    limit = (low + high) // 2 if too_wide else min(max(limit, high - widest), low + widest)
    return min(max(limit, low + 1), high - 1)
