"""The policies against brute force and by their properties, on layers small enough to enumerate."""

import itertools
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from pelacli.errors import RequestError
from pelacli.ranks.budget import Budget
from pelacli.ranks.open_ranks import OpenRanks
from pelacli.ranks.planner import plan
from pelacli.ranks.policies import threshold, uniform
from pelacli.ranks.policies.base import Target
from pelacli.ranks.size import ModelSize
from pelacli.ranks.spectrum import Spectrum

MAX = 6


@st.composite
def spectra(draw, max_layers=3, min_energy=0):
    layers = []
    for i in range(draw(st.integers(1, max_layers))):
        shape = (draw(st.integers(1, MAX)), draw(st.integers(1, MAX)))
        n = min(shape)
        energies = draw(st.lists(st.integers(min_energy, 40), min_size=n, max_size=n))
        layers.append(Spectrum(f"layer{i}", shape, np.sort(energies)[::-1] * 0.37))
    return layers


ratios = st.fractions(Fraction(1, 10), Fraction(1), max_denominator=60)


def options(s, *, dense=True):
    """All (cost, kept energy) of a layer: any rank below break-even, and dense."""
    out, in_ = s.shape
    below = [r for r in range(min(out, in_) + 1) if r * (out + in_) < out * in_]
    kept = [(r * (out + in_), s.energies[:r].sum()) for r in below]
    return kept + [(out * in_, s.energies.sum())] * dense


def best(layers, limit, *, dense=True):
    """The most energy that any combination keeps within the limit, by trying them all."""
    return max(
        sum(e for _, e in combination)
        for combination in itertools.product(*(options(s, dense=dense) for s in layers))
        if sum(c for c, _ in combination) <= limit
    )


def hull(points):
    """Upper hull of (cost, energy) from the cheapest point, as segments (cost, energy)."""
    segments, at = [], points[0]
    while ahead := [p for p in points if p[0] > at[0] and p[1] > at[1]]:
        to = max(ahead, key=lambda p: ((p[1] - at[1]) / (p[0] - at[0]), p[0]))
        segments.append((to[0] - at[0], to[1] - at[1]))
        at = to
    return segments


def in_factors(spectrum, ranks):
    """A layer to which these ranks are open, and dense."""
    out, in_ = spectrum.shape
    ranks = np.array(ranks)
    forms = np.zeros(len(ranks), int)
    return OpenRanks(spectrum, ranks, ranks * (out + in_), out * in_, True, forms)


def total(layers):
    return sum(s.shape[0] * s.shape[1] for s in layers)


def energy_of(layers, chosen):
    return sum(chosen.layers[s.name].energy * s.energies.sum() for s in layers)


def energy_plan(layers, ratio, **how):
    return plan(layers, Budget("energy", ratio, scope="layers", **{"min_rank": 0} | how))


@given(spectra(), ratios)
@settings(max_examples=300)
def test_energy_is_optimal_up_to_one_item(layers, ratio):
    chosen = energy_plan(layers, ratio)
    limit = int(ratio * total(layers))
    assert chosen.used <= chosen.limit == limit
    kept = energy_of(layers, chosen)
    # Against every choice without dense jumps: at most one rank of one layer is missing.
    one_rank = max(s.energies[0] for s in layers)
    assert kept >= best(layers, limit, dense=False) - one_rank - 1e-9
    # Against the relaxed optimum with them: at most the item that did not fit. Of several with
    # its density it may be any.
    items = sorted(
        ((gain / cost, cost, gain) for s in layers for cost, gain in hull(options(s))), reverse=True
    )
    left, relaxed, missing = limit, 0.0, 0.0
    for density, cost, gain in items:
        if cost > left:
            relaxed += density * left
            missing = max(g for d, _, g in items if abs(d - density) < 1e-9)
            break
        left, relaxed = left - cost, relaxed + gain
    assert best(layers, limit) <= relaxed + 1e-9  # the yardstick itself is right
    assert relaxed - missing - 1e-9 <= kept <= relaxed + 1e-9


@given(spectra(max_layers=4), ratios, ratios, st.integers(0, 2), st.integers(1, 3))
@settings(max_examples=200)
def test_energy_grows_with_the_budget(layers, a, b, min_rank, multiple):
    try:
        low, high = (
            energy_plan(layers, r, min_rank=min_rank, multiple=multiple) for r in sorted((a, b))
        )
    except RequestError:
        reject()
    assert energy_of(layers, high) >= energy_of(layers, low) - 1e-9
    assert low.used <= low.limit
    assert high.used <= high.limit


@given(spectra(max_layers=4), ratios, st.randoms(use_true_random=False), st.integers(-20, 20))
@settings(max_examples=100)
def test_neither_order_nor_unit_of_energy_changes_the_plan(layers, ratio, random, power):
    chosen = energy_plan(layers, ratio)
    shuffled = list(layers)
    random.shuffle(shuffled)
    assert energy_plan(shuffled, ratio) == chosen
    scaled = [Spectrum(s.name, s.shape, s.energies * 2.0**power) for s in layers]
    assert energy_plan(scaled, ratio).ranks() == chosen.ranks()


def test_equal_layers_are_served_by_name():
    layers = [Spectrum(name, (10, 10), np.ones(10)) for name in "cab"]
    # Dense keeps 10 for 100, ranks only 1 for 20: one layer dense, the next gets what is left.
    chosen = energy_plan(layers, Fraction(150, 300))
    assert [chosen.layers[n].rank for n in "abc"] == [None, 2, 0]


def test_a_jump_to_dense_is_taken_where_it_pays_and_replaced_where_it_does_not_fit():
    flat = Spectrum("flat", (10, 10), np.full(10, 2.0))
    steep = Spectrum("steep", (10, 10), np.array([50.0, 3.0, *[0.01] * 8]))
    ranks = energy_plan([flat, steep], Fraction(140, 200)).layers
    assert (ranks["flat"].rank, ranks["steep"].rank) == (None, 2)
    # A unit less and the jump is out of reach: flat goes by ranks.
    ranks = energy_plan([flat, steep], Fraction(119, 200)).layers
    assert (ranks["flat"].rank, ranks["steep"].rank) == (3, 2)


def test_what_is_left_goes_to_later_items_that_fit():
    wide = Spectrum("wide", (10, 90), np.linspace(100, 91, 10))  # 100 a rank
    small = Spectrum("small", (6, 6), np.array([1.0, 0.9, 0.01, 0.01, 0.01, 0.01]))  # 12 a rank
    chosen = energy_plan([wide, small], Fraction(224, 936), max_rank=2)
    assert chosen.ranks() == {"wide": 2, "small": 2}
    assert chosen.used == chosen.limit == 224


def test_energy_buys_nothing_that_keeps_nothing():
    low = Spectrum("low", (20, 20), np.array([5.0, 4.0] + [0.0] * 18))
    zero = Spectrum("zero", (20, 20), np.zeros(20))
    chosen = energy_plan([low, zero], Fraction(1), min_rank=1)
    assert chosen.ranks() == {"low": 2, "zero": 1}
    assert chosen.energy == 1.0


@given(spectra(), ratios, st.integers(1, 3))
@settings(max_examples=150)
def test_uniform_in_the_model_is_the_largest_common_ratio(layers, ratio, multiple):
    how = {"min_rank": 0, "multiple": multiple}
    assume(ratio * (total(layers) + 1) >= 1)
    chosen = plan(layers, Budget("uniform", ratio, **how), ModelSize(fixed_params=1))
    assert chosen.limit == int(ratio * (total(layers) + 1))
    # With scope "layers" the ranks are those of the ratio itself: try every ratio that matters.
    costs = [1]
    for out, in_ in {s.shape for s in layers}:
        for rank in range(1, min(out, in_) + 1):
            q = min(Fraction(1), Fraction(rank * (out + in_), out * in_))
            costs.append(1 + plan(layers, Budget("uniform", q, scope="layers", **how)).used)
    assert chosen.used == max(cost for cost in costs if cost <= chosen.limit)


def test_uniform_tells_close_ratios_apart():
    shapes = [(20, 21), (20, 22), (21, 22), (19, 23)]
    layers = [
        in_factors(Spectrum("", s, np.ones(min(s))), range((s[0] * s[1] - 1) // sum(s) + 1))
        for s in shapes
    ]
    ratios = {Fraction(r * sum(s), s[0] * s[1]) for s in shapes for r in range(12)} | {Fraction(1)}
    costs = sorted(
        sum(
            q * out * in_ // (out + in_) * (out + in_) if q < 1 else out * in_
            for out, in_ in shapes
        )
        for q in ratios
        if q <= 1
    )
    for limit in {near for cost in costs for near in (cost - 1, cost) if near >= 0}:
        ranks = uniform.choose(layers, Target(limit))
        used = sum(layer.cost(rank) for layer, rank in zip(layers, ranks, strict=True))
        assert used == max(cost for cost in costs if cost <= limit)


def test_threshold_keeps_the_smallest_sufficient_rank():
    energies = np.array([4.0, 3.0, 2.0, 1.0])

    def rank(share, shape=(4, 400), energies=energies, low=0, step=1):
        layer = in_factors(Spectrum("", shape, energies), range(low, 4, step))
        return threshold.choose([layer], Target(None, threshold=share))[0]

    assert [rank(s) for s in (0.1, 0.4, 0.41, 0.7, 0.71, 0.9)] == [1, 1, 2, 2, 3, 3]
    assert rank(0.91) is None  # rank 4 is past break-even
    assert rank(1.0, energies=np.array([4.0, 3.0, 0.0, 0.0])) == 2
    assert rank(1.0, energies=np.zeros(4), low=1) == 1
    assert rank(0.1, step=3) == 3  # rounded up: what is kept must not fall below the threshold
    assert rank(0.1, low=2) == 2


def test_shares_end_at_exactly_one():
    energies = np.sort(np.random.default_rng(0).random(1000))[::-1] * 0.1
    shares = Spectrum("", (1000, 1000), energies).shares
    assert shares[0] == 0
    assert shares[-1] == 1
    assert len(shares) == 1001
    assert (Spectrum("", (3, 3), np.zeros(3)).shares == 1).all()


@pytest.mark.parametrize("policy", ["energy", "uniform"])
def test_thousands_of_layers_take_no_time(policy):
    rng = np.random.default_rng(0)
    layers = [
        Spectrum(
            f"layer{i}",
            (int(rng.integers(1000, 4000)), 1000),
            np.sort(rng.pareto(1.2, 1000))[::-1] * rng.uniform(0.1, 10),
        )
        for i in range(2000)
    ]
    start = time.process_time()
    chosen = plan(layers, Budget(policy, Fraction(1, 2), scope="layers"))
    assert time.process_time() - start < 5  # 0.3 s; trying every pair of items would take minutes
    dearest = 5000 if policy == "energy" else 2000 * 5000  # a rank of one layer, or of each
    assert chosen.limit - dearest <= chosen.used <= chosen.limit


# --- the smallest that keeps a share of all energy ------------------------------------------------


def share_plan(layers, share, **how):
    return plan(layers, Budget(energy=share, scope="layers", **{"min_rank": 0} | how))


def cheapest(layers, share):
    """The least that any combination costs which keeps the share, by trying them all."""
    whole = sum(s.energies.sum() for s in layers)
    return min(
        sum(c for c, _ in combination)
        for combination in itertools.product(*(options(s) for s in layers))
        if sum(e for _, e in combination) >= share * whole - 1e-9
    )


@given(spectra(), st.floats(0.01, 1))
@settings(max_examples=300)
def test_a_share_is_kept_at_the_least_cost_up_to_one_item(layers, share):
    chosen = share_plan(layers, share)
    assert chosen.energy >= share
    items = [cost for s in layers for cost, _ in hull(options(s))]
    assert chosen.used <= cheapest(layers, share) + max(items, default=0)
    assert (chosen.share, chosen.ratio, chosen.limit) == (share, None, None)


@given(spectra(max_layers=4), st.floats(0.01, 1), st.integers(0, 2), st.integers(1, 3))
@settings(max_examples=200)
def test_a_share_and_the_budget_that_it_costs_give_one_plan(layers, share, min_rank, multiple):
    how = {"min_rank": min_rank, "multiple": multiple}
    chosen = share_plan(layers, share, **how)
    ratio = Fraction(chosen.used, total(layers))
    assume(ratio > 0)
    assert energy_plan(layers, ratio, **how).ranks() == chosen.ranks()
    lower = Fraction(chosen.used - 1, total(layers))
    try:
        less = energy_plan(layers, lower, **how) if lower > 0 else None
    except RequestError:
        less = None  # the layers at their lowest ranks
    assert less is None or less.energy < share


@given(spectra(max_layers=4), st.floats(0.01, 1), st.floats(0.01, 1))
@settings(max_examples=100)
def test_a_larger_share_costs_no_less(layers, a, b):
    low, high = (share_plan(layers, share) for share in sorted((a, b)))
    assert low.used <= high.used
    assert low.energy <= high.energy


def test_a_share_counts_pinned_layers_too():
    layers = [Spectrum(name, (10, 10), np.array([6.0, 4.0] + [0.0] * 8)) for name in "ab"]
    # Of 20 in all the pinned layer keeps 6, and b's first rank makes it 12.
    chosen = share_plan(layers, 0.6, pins={"a": 1})
    assert chosen.ranks() == {"a": 1, "b": 1}
    with pytest.raises(RequestError, match=r"energy 0\.81 cannot be kept.* 0\.8 at most"):
        share_plan(layers, 0.81, pins={"a": 1})
    # A rank of each layer costs the same, of b twice as much in FLOPs.
    costly = [layers[0], Spectrum("b", (10, 10), layers[1].energies, tokens=2)]
    assert share_plan(costly, 0.5).ranks() == {"a": 1, "b": 1}
    assert share_plan(costly, 0.5, unit="flops").ranks() == {"a": 2, "b": 0}


def test_a_share_with_no_energy_at_all_costs_least():
    layers = [Spectrum("a", (4, 4), np.zeros(4))]
    assert share_plan(layers, 1.0).used == 0


def test_thousands_of_layers_by_share_in_little_time():
    random = np.random.default_rng(0)
    layers = [Spectrum(f"l{i}", (768, 768), np.sort(random.random(768))[::-1]) for i in range(1000)]
    start = time.process_time()
    assert 0.9 <= share_plan(layers, 0.9).energy < 0.901
    assert time.process_time() - start < 30
