"""Plans in both forms and by measured times: against a slow planner in exact numbers, against
brute force, and by their properties."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from pelacli.errors import RequestError
from pelacli.ranks import reasons
from pelacli.ranks.budget import Budget
from pelacli.ranks.plan import LayerPlan, Plan
from pelacli.ranks.planner import measure, plan
from pelacli.ranks.prices import LatencyTable
from pelacli.ranks.size import ModelSize
from pelacli.ranks.spectrum import Spectrum

MAX = 7


def stored(shape, rank, form):
    """The numbers that a layer stores, counted one by one: a pivot row is a unit vector."""
    out, in_ = shape
    if rank is None:
        return out * in_
    up = (out - rank if form == "pivots" else out) * rank
    return up + rank * in_


@st.composite
def problems(draw, max_layers=3):
    """Layers with whole-numbered energies, so that sums and densities are exact, their times, and
    the costs of what each may become: layer → {rank: (cost, form)}, None for dense."""
    how = draw(st.sampled_from(["factors", "pivots", "auto", "times"]))
    layers, tables, options = [], {}, {}
    for i in range(draw(st.integers(1, max_layers))):
        shape = (draw(st.integers(1, MAX)), draw(st.integers(1, MAX)))
        n = min(shape)
        energies = draw(st.lists(st.integers(0, 40), min_size=n, max_size=n))
        layer = Spectrum(f"layer{i}", shape, np.sort(energies)[::-1].astype(float))
        layers.append(layer)
        forms = ("factors", "pivots") if how in ("auto", "times") else (how,)
        costs = {form: [stored(shape, r, form) for r in range(n + 1)] for form in forms}
        dense = shape[0] * shape[1]
        if how == "times":
            any_times = st.lists(st.integers(0, 60), min_size=n + 1, max_size=n + 1)
            costs = {form: draw(any_times) for form in forms}
            dense = draw(st.integers(0, 60))
            tables[layer.name] = LatencyTable(dense, {f: np.array(t) for f, t in costs.items()})
        options[layer.name] = {None: (dense, None)} | {
            r: min((costs[form][r], form) for form in forms)
            for r in range(n)
            if min(costs[form][r] for form in forms) < dense
        }
    unit = "latency" if how == "times" else "params"
    return layers, {"form": "auto" if how == "times" else how, "unit": unit}, tables, options


ratios = st.fractions(Fraction(1, 10), Fraction(1), max_denominator=60)


def planned(problem, ratio, **how):
    layers, settings, tables, _ = problem
    budget = Budget("energy", ratio, scope="layers", **({"min_rank": 0} | settings | how))
    return plan(layers, budget, tables=tables)


def kept(layer, rank):
    return int(layer.energies[:rank].sum())  # [:None] is all of it


def slowly(problem, limit):
    """Each layer from its cheapest choice on, always by the densest step that still fits."""
    layers, _, _, options = problem
    at = {
        la.name: min(options[la.name], key=lambda r: (options[la.name][r][0], -kept(la, r)))
        for la in layers
    }
    left = limit - sum(options[name][rank][0] for name, rank in at.items())
    while True:
        steps = []
        for number, layer in enumerate(layers):
            here = options[layer.name][at[layer.name]][0]
            for rank, (cost, _) in options[layer.name].items():
                gain, price = kept(layer, rank) - kept(layer, at[layer.name]), cost - here
                if gain > 0 and 0 < price <= left:
                    steps.append((Fraction(-gain, price), number, price, rank, layer.name))
        if not steps:
            return at
        _, _, price, rank, name = min(steps, key=lambda step: step[:3])
        at[name], left = rank, left - price


@given(problems(), ratios)
@settings(max_examples=200)
def test_each_purchase_is_the_densest_that_fits(problem, ratio):
    try:
        chosen = planned(problem, ratio)
    except RequestError:
        reject()
    layers, _, _, options = problem
    by_hand = slowly(problem, chosen.limit)

    def energies(ranks):
        return {layer.name: kept(layer, ranks[layer.name]) for layer in layers}

    assert energies({n: la.rank for n, la in chosen.layers.items()}) == energies(by_hand)
    spent = 0
    for name, layer in chosen.layers.items():
        cost, form = options[name][layer.rank]
        assert layer.form == form
        spent += cost
    assert chosen.used == spent <= chosen.limit


@given(problems(), ratios)
@settings(max_examples=100)
def test_the_plan_is_optimal_up_to_one_edge(problem, ratio):
    try:
        chosen = planned(problem, ratio)
    except RequestError:
        reject()
    layers, _, _, options = problem
    best = max(
        sum(kept(layer, rank) for layer, rank in zip(layers, ranks, strict=True))
        for ranks in itertools.product(*(options[layer.name] for layer in layers))
        if sum(options[la.name][r][0] for la, r in zip(layers, ranks, strict=True)) <= chosen.limit
    )
    got = sum(kept(layer, chosen.layers[layer.name].rank) for layer in layers)
    # An edge never keeps more than its layer has.
    assert best - max(kept(layer, None) for layer in layers) <= got <= best


@given(problems(max_layers=4), ratios, ratios)
@settings(max_examples=100)
def test_more_to_spend_never_keeps_less(problem, a, b):
    try:
        low, high = (planned(problem, ratio).energy for ratio in sorted((a, b)))
    except RequestError:
        reject()
    assert low <= high


@given(problems(max_layers=4), ratios, st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_the_order_of_the_layers_does_not_matter(problem, ratio, random):
    layers, *rest = problem
    shuffled = list(layers)
    random.shuffle(shuffled)
    try:
        chosen = planned(problem, ratio)
    except RequestError:
        reject()
    assert planned((shuffled, *rest), ratio) == chosen


@given(problems(max_layers=4), st.floats(0.01, 1))
@settings(max_examples=100)
def test_a_share_of_the_energy_costs_the_smallest_budget_that_keeps_it(problem, share):
    chosen = planned(problem, None, energy=share)
    assert chosen.energy >= share
    if not chosen.used:
        return
    # What it costs is what has to be spent: it buys this plan, and less does not keep the share.
    assert planned(problem, Fraction(chosen.used, chosen.total)).energy == chosen.energy
    try:
        less = planned(problem, Fraction(chosen.used - 1, chosen.total))
    except RequestError:
        return
    assert less.energy < share


@given(problems())
@settings(max_examples=100)
def test_the_whole_budget_keeps_everything(problem):
    try:
        chosen = planned(problem, Fraction(1))
    except RequestError:  # times of zero
        reject()
    layers, *_ = problem
    assert chosen.energy == 1
    for layer in layers:
        if layer.energies[-1] > 0:
            assert chosen.layers[layer.name].rank is None


@given(problems(), ratios)
@settings(max_examples=100)
def test_a_refused_budget_names_the_smallest_that_will_do(problem, ratio):
    try:
        planned(problem, ratio, min_rank=1)
    except RequestError as error:
        smallest = Fraction(str(error).split("smallest possible is ")[1].split(",")[0])
        assert smallest > ratio
        assert planned(problem, smallest, min_rank=1).used
        if (below := smallest - Fraction(1, 10_000)) > 0:
            with pytest.raises(RequestError, match="cannot be met"):
                planned(problem, below, min_rank=1)


# --- pivots --------------------------------------------------------------------------------------


def flat(name="layer", shape=(10, 10)):
    return Spectrum(name, shape, np.ones(min(shape)))


def test_pivots_buy_rank():
    decaying = Spectrum("layer", (768, 768), 0.98 ** np.arange(768))
    ranks = {
        form: plan([decaying], Budget(ratio=Fraction(1, 2), scope="layers", multiple=1, form=form))
        for form in ("factors", "pivots", "auto")
    }
    assert ranks["factors"].ranks() == {"layer": 192}
    assert ranks["pivots"].ranks() == {"layer": 224}  # 225 costs 294,975 of 294,912
    assert ranks["auto"].layers == ranks["pivots"].layers
    assert ranks["pivots"].forms() == {"layer": "pivots"}
    assert ranks["pivots"].used == 224 * (2 * 768 - 224)


def test_pivots_are_open_up_to_the_last_rank_but_one():
    steep = Spectrum("layer", (10, 10), np.array([90.0] * 9 + [0.1]))
    chosen = plan([steep], Budget(ratio=Fraction(99, 100), scope="layers", form="pivots"))
    assert chosen.ranks() == {"layer": 9}
    assert chosen.used == chosen.limit == 99
    held = Budget(ratio=Fraction(1), scope="layers", form="pivots", max_rank=9)
    assert plan([steep], held).ranks() == {"layer": 9}
    assert plan([steep], Budget(ratio=Fraction(1), scope="layers", form="pivots")).ranks() == {}


def test_large_layers_go_by_eights_in_pivots_too():
    layers = [Spectrum(n, (200, 300), 0.97 ** np.arange(200)) for n in "ab"]
    kept = []
    for limit in range(20, 1000, 9):
        budget = Budget(ratio=Fraction(limit, 1000), scope="layers", form="auto")
        chosen = plan(layers, budget)
        assert chosen.used <= chosen.limit
        kept.append(chosen.energy)
        if limit > 100:
            assert {rank % 8 for rank in chosen.ranks().values()} <= {0}
    assert kept == sorted(kept)


def test_uniform_takes_pivots_only_where_they_are_asked_for():
    shapes = [(768, 768), (3072, 768), (768, 3072), (5, 3)]
    layers = [flat(f"layer{i}", shape) for i, shape in enumerate(shapes)]

    def ranks(form):
        budget = Budget("uniform", Fraction(1, 2), scope="layers", form=form, min_rank=0)
        chosen = plan(layers, budget)
        assert set(chosen.forms().values()) == {"factors" if form == "auto" else form}
        return chosen.ranks()

    assert ranks("auto") == ranks("factors")
    for (out, in_), rank in zip(shapes, ranks("pivots").values(), strict=True):
        # r (in + out − r) ≤ in out / 2, and one rank more is past it
        assert 2 * rank * (in_ + out - rank) <= in_ * out
        assert 2 * (rank + 1) * (in_ + out - rank - 1) > in_ * out


def test_a_threshold_takes_pivots_only_where_they_are_asked_for():
    layers = [flat()]
    for form, rank in (("auto", None), ("factors", None), ("pivots", 9)):
        chosen = plan(layers, Budget("threshold", threshold=0.9, form=form))
        assert chosen.layers["layer"].rank == rank
    low = plan(layers, Budget("threshold", threshold=0.3, form="auto"))
    assert (low.ranks(), low.forms()) == ({"layer": 3}, {"layer": "factors"})


def test_a_pinned_layer_takes_the_cheaper_form():
    layers = [flat(name) for name in "abcd"]
    pins = {"a": 6, "b": 0, "c": "full", "d": "dense"}
    chosen = plan(layers, Budget(ratio=Fraction(1), scope="layers", pins=pins, form="auto"))
    # Rank 0 stores nothing in either form, so it is the plainer one.
    assert chosen.forms() == {"a": "pivots", "b": "factors", "c": "pivots"}
    assert chosen.used == 6 * 14 + 0 + 100 + 100


def test_a_settled_form_holds_whatever_the_budget_says():
    layers = [flat("tame"), flat("wild")]
    budget = Budget(ratio=Fraction(3, 5), scope="layers", form="auto", forms={"wild": "factors"})
    chosen = plan(layers, budget)
    assert chosen.layers["wild"].rank is None or chosen.forms()["wild"] == "factors"
    pinned = Budget(
        ratio=Fraction(1), scope="layers", form="pivots", forms={"wild": "factors"},
        pins={"tame": 2, "wild": 2},
    )  # fmt: skip
    chosen = plan(layers, pinned)
    assert chosen.forms() == {"tame": "pivots", "wild": "factors"}
    assert chosen.used == 2 * 18 + 2 * 20


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"form": "best"}, "form 'best' is none of auto, factors, pivots"),
        ({"forms": {"a": "auto"}}, "form of a 'auto' is none of factors, pivots"),
        ({"unit": "latency", "policy": "uniform"}, "unit latency belongs to policy energy"),
    ],
)
def test_a_form_that_is_none_is_refused(how, message):
    with pytest.raises(RequestError, match=message):
        Budget(**({"ratio": Fraction(1, 2)} | how))


def test_a_plan_counts_the_form_that_it_names():
    layers, size = [flat()], ModelSize(fixed_params=5, fixed_flops=7)
    for unit, per_weight, fixed in (("params", 1, 5), ("flops", 2, 7)):
        by_hand = Plan("by hand", "model", None, {"layer": LayerPlan((10, 10), 3)}, unit=unit)
        assert measure(by_hand, layers, size).used == fixed + per_weight * 60
        in_pivots = {"layer": LayerPlan((10, 10), 3, form="pivots")}
        by_hand = Plan("by hand", "model", None, in_pivots, unit=unit)
        assert measure(by_hand, layers, size).used == fixed + per_weight * 51
        assert measure(by_hand, layers, size).forms() == {"layer": "pivots"}


# --- measured times ------------------------------------------------------------------------------


def times(dense, **forms):
    return LatencyTable(dense, {form: np.array(of) for form, of in forms.items()})


def by_time(layers, ratio, tables, **how):
    budget = Budget(ratio=ratio, unit="latency", **({"form": "auto", "scope": "layers"} | how))
    return plan(layers, budget, ModelSize(fixed_latency=100), tables)


def test_a_layer_that_no_rank_makes_faster_stays_dense():
    layers = [flat("slow", (3, 3)), flat("fast", (3, 3))]
    tables = {
        "slow": times(50, factors=[50, 60, 70, 80], pivots=[55, 55, 55, 55]),
        "fast": times(50, factors=[10, 20, 60, 70], pivots=[10, 15, 30, 50]),
    }
    chosen = by_time(layers, Fraction(8, 10), tables)
    assert chosen.layers["slow"].reason == reasons.NOT_FASTER
    spared = by_time([flat("slow", (3, 3)), flat("fast", (3, 3))], 1, tables)
    assert spared.layers["fast"].reason == reasons.NOT_WORTH_ITS_TIME
    assert (chosen.ranks(), chosen.forms()) == ({"fast": 2}, {"fast": "pivots"})
    assert (chosen.unit, chosen.limit, chosen.used, chosen.total) == ("latency", 80, 80, 100)
    with pytest.raises(RequestError, match=r"smallest possible is 0\.65"):
        by_time(layers, Fraction(1, 2), tables)
    whole = by_time(layers, Fraction(9, 10), tables, scope="model")
    assert (whole.used, whole.total) == (180, 200)


def test_a_rank_that_is_slower_than_a_higher_one_is_not_taken():
    layers = [flat("layer", (4, 4))]
    tables = {"layer": times(100, factors=[10, 40, 80, 30, 100])}
    for percent, rank in ((30, 3), (99, 3), (100, None), (29, 0)):
        chosen = by_time(layers, Fraction(percent, 100), tables, min_rank=0)
        assert chosen.layers["layer"].rank == rank
    # A budget below what the lowest rank takes is met by rank 3, which is faster.
    assert by_time(layers, Fraction(30, 100), tables).ranks() == {"layer": 3}


def test_the_faster_form_is_taken_and_factors_where_they_are_equal():
    layers = [flat(name, (2, 2)) for name in "ab"]
    tables = {
        "a": times(100, factors=[5, 50, 90], pivots=[5, 50, 60]),
        "b": times(100, factors=[5, 50, 90], pivots=[5, 49, 60]),
    }
    chosen = by_time(layers, Fraction(1, 2), tables)
    assert chosen.forms() == {"a": "factors", "b": "pivots"}
    assert by_time(layers, Fraction(1, 2), tables, form="factors").used == 100


def test_unknown_times_are_refused():
    with pytest.raises(ValueError, match="layer: its latencies are unknown"):
        by_time([flat()], Fraction(1, 2), {})
    few = {"layer": times(100, factors=[1, 2])}
    with pytest.raises(
        ValueError, match=r"layer: \(2,\) latencies for a layer of shape \(10, 10\)"
    ):
        by_time([flat()], Fraction(1, 2), few)
    with pytest.raises(RequestError, match="was not timed in form pivots; take factors"):
        by_time([flat()], Fraction(1, 2), few, form="pivots")
    with pytest.raises(ValueError, match="needs fixed_latency"):
        plan([flat()], Budget(ratio=Fraction(1, 2), unit="latency"), tables=few)
