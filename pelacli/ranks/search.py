"""The smallest budget with which a model loses little enough, in a handful of evaluations.

A search for the place where a curve crosses a line, on whole numbers: a *limit* is a budget, its
*cost* what the plan under it really spends, its *lost* the energy that this plan drops, and its
*drop* what an evaluation says. Cost and lost are cheap to know, a drop is dear. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, log


@dataclass(frozen=True)
class Trial:
    """One evaluated budget.

    Attributes:
        limit: what was planned for; cost: what that plan spends, at most the limit.
        lost: energy that the plan drops, in any unit.
        drop: what the evaluation found; accepted: whether that is little enough.
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

    A bracket is kept between the largest refused limit below the smallest accepted one, and that
    one; the dense model (cost ``whole``, drop 0) counts as accepted. Where in it to look is
    guessed from the energy lost, which drops follow roughly as a power. The guess is held so near
    the middle that halving could still end within the tolerance with the evaluations that are
    left. So it does for any curve, if whole − least is at most 2^evaluations tolerances.

    The drop need not fall steadily: the answer is the cheapest that was accepted, whatever lies
    below it.

    Args:
        evaluate: limit → drop.
        foresee: limit → (cost, lost) of its plan. A smaller limit never costs more or loses less.
        least: the smallest possible limit.
        evaluations: how many there may be.
        tolerance: end when the bracket is no wider.

    Returns:
        the trials in order; none of them accepted where nothing below ``whole`` will do.
    """
    trials: list[Trial] = []
    accepted = Trial(whole, whole, 0.0, 0.0, True)
    low = least - 1
    while len(trials) < evaluations and accepted.cost - low > tolerance:
        want = _wanted(trials, max_drop)
        limit = (low + accepted.cost) // 2
        if want is not None:
            limit = _where(foresee, want, low, accepted.cost)
        left = evaluations - len(trials) - 1
        limit = _held(limit, low, accepted.cost, tolerance, left)
        cost, lost = foresee(limit)
        if cost <= low:  # the very plan that was refused before
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


def _wanted(trials: Sequence[Trial], max_drop: float) -> float | None:
    """The lost energy at which the drop should be ``max_drop``; None where nothing tells.

    A power law through the two trials whose drops are nearest; through one, a proportion.
    """
    if max_drop <= 0:
        return None
    known = [t for t in trials if 0 < t.drop < inf and t.lost > 0]
    known.sort(key=lambda t: abs(log(t.drop / max_drop)))
    if not known:
        return None
    near, power = known[0], 1.0
    far = next((t for t in known if t.lost != near.lost), near)
    if far.lost != near.lost:
        slope = log(far.drop / near.drop) / log(far.lost / near.lost)
        if slope > 0:  # else it is noise
            power = min(max(slope, 0.25), 4.0)
    return float(near.lost * (max_drop / near.drop) ** (1 / power))


def _where(foresee: Callable[[int], tuple[int, float]], want: float, low: int, high: int) -> int:
    """The smallest limit between the two whose plan loses no more than is wanted."""
    while high - low > 1:
        middle = (low + high) // 2
        if foresee(middle)[1] <= want:
            high = middle
        else:
            low = middle
    return high


def _held(limit: int, low: int, high: int, tolerance: int, left: int) -> int:
    """The limit, moved to where both halves of the bracket are narrow enough to finish."""
    # A guess next to an end is a guess that the other half holds nothing: settle that at once.
    if limit - low < tolerance:
        limit = low + tolerance
    elif high - limit < tolerance:
        limit = high - tolerance
    room = tolerance << left
    wide = high - low > 2 * room
    limit = (low + high) // 2 if wide else min(max(limit, high - room), low + room)
    return min(max(limit, low + 1), high - 1)
