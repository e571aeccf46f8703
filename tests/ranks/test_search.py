"""The search for a quality budget, on curves made up for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelacli.ranks.search import Trial, best, walk

WHOLE, TOLERANCE, EVALUATIONS = 10_000, 100, 7


def lost_at(limit, power=3.0):
    """A spectrum's usual shape: the first ranks hold the most."""
    return (1 - limit / WHOLE) ** power


def search(drop, *, max_drop=1.0, least=1, foresee=None, evaluations=EVALUATIONS):
    """The trials for a drop that is a function of the plan's cost, and which limits were tried."""
    foresee = foresee or (lambda limit: (limit, lost_at(limit)))
    asked = []

    def evaluate(limit):
        asked.append(limit)
        return drop(foresee(limit)[0])

    trials = walk(
        evaluate,
        foresee,
        least=least,
        whole=WHOLE,
        max_drop=max_drop,
        evaluations=evaluations,
        tolerance=TOLERANCE,
    )
    assert [t.limit for t in trials] == asked
    assert len(set(asked)) == len(asked) <= evaluations
    for t in trials:
        assert (t.cost, t.lost) == foresee(t.limit)
        assert t.accepted == (t.drop <= max_drop)
    return trials


def answer(trials):
    cheapest = best(trials)
    return WHOLE if cheapest is None else cheapest.cost


@given(st.integers(0, WHOLE - 1), st.sampled_from([0.3, 1, 2, 6]), st.floats(0.1, 5))
def test_a_falling_curve_is_crossed_within_the_tolerance(crossing, power, max_drop):
    """The drop is a power of the energy lost, and ``max_drop`` at the crossing."""
    scale = lost_at(crossing) or 1.0
    trials = search(lambda c: max_drop * (lost_at(c) / scale) ** power, max_drop=max_drop)
    assert crossing <= answer(trials) <= crossing + TOLERANCE + 1


@given(st.data(), st.integers(1, WHOLE - 1))
def test_any_curve_ends_within_the_tolerance(data, least):
    """Not monotone, with no rule: still the bracket closes, in the evaluations that there are."""
    drops = {}

    def drop(cost):
        return drops.setdefault(cost, data.draw(st.floats(-3, 10) | st.just(float("nan"))))

    trials = search(drop, least=least)
    cost = answer(trials)
    below = [t.limit for t in trials if not t.accepted and t.limit < cost]
    assert cost - max([least - 1, *below]) <= TOLERANCE
    assert cost == min([WHOLE, *(t.cost for t in trials if t.accepted)])


@given(st.integers(500, 9_500), st.integers(0, 2**32 - 1))
def test_noise_moves_the_answer_no_further_than_it_reaches(crossing, seed):
    """Within 300 of the crossing the drop says anything, as on few samples."""
    state = seed

    def drop(cost):
        nonlocal state
        if abs(cost - crossing) <= 300:
            state = (state * 1_103_515_245 + 12_345) % 2**31
            return state / 2**30  # 0 to 2
        return 0.1 if cost > crossing else 9.0

    trials = search(drop)
    assert crossing - 300 <= answer(trials) <= crossing + 300 + TOLERANCE + 1


def test_the_guess_saves_evaluations():
    """Where the drop follows the energy lost, fewer are needed than halving takes."""
    halvings, guesses = 0, 0
    for crossing in range(300, 9_800, 500):
        scale = lost_at(crossing)
        guesses += len(search(lambda c, s=scale: (lost_at(c) / s) ** 1.5))
        halvings += len(
            search(lambda c, s=scale: (lost_at(c) / s) ** 1.5, foresee=lambda n: (n, 0.0))
        )
    assert guesses < 0.75 * halvings


def test_a_plan_is_not_tried_twice():
    """Costs of a coarse model jump; limits between two jumps are one plan."""

    def foresee(limit):
        cost = limit // 1_500 * 1_500 or 1
        return cost, lost_at(cost)

    trials = search(lambda c: 0.5 if c >= 6_000 else 2.0, foresee=foresee)
    costs = [t.cost for t in trials]
    assert len(set(costs)) == len(costs)
    assert answer(trials) == 6_000


def test_nothing_will_do():
    trials = search(lambda c: 5.0)
    assert best(trials) is None
    assert max(t.limit for t in trials) >= WHOLE - TOLERANCE


def test_everything_will_do():
    assert answer(search(lambda c: -0.2, least=700)) <= 700 + TOLERANCE
    assert search(lambda c: 0.0, least=WHOLE - 50) == []  # no room to search


def test_a_smaller_bracket_than_halving_can_close_is_left_open():
    trials = search(lambda c: 0.0 if c > 3_333 else 9.0, foresee=lambda n: (n, 0.0), evaluations=3)
    assert [t.limit for t in trials] == [5_000, 2_500, 3_750]


@pytest.mark.parametrize("order", [1, -1])
def test_best_is_the_cheapest_accepted(order):
    trials = [
        Trial(50, 49, 0.1, 0.2, True),
        Trial(40, 40, 0.2, 3.0, False),
        Trial(45, 44, 0.1, 0.9, True),
    ]
    assert best(trials[::order]) == Trial(45, 44, 0.1, 0.9, True)


@pytest.mark.parametrize("tiny", [5e-324, 1e-300])
def test_the_smallest_drops_and_losses_are_no_trouble(tiny):
    def drop(limit):
        return tiny if limit > 50 else 1e300

    def foresee(limit):
        return limit, tiny * (100 - limit) + (1 - limit / 100) ** 40

    trials = list(
        walk(drop, foresee, least=1, whole=100, max_drop=10.0, evaluations=8, tolerance=1)
    )
    assert best(trials).drop == tiny
