"""Budgets, limits, pins and errors of the rank engine, and the paper's ranks."""

import re
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from pelacli.errors import RequestError
from pelacli.ranks.budget import Budget
from pelacli.ranks.plan import LayerPlan, Plan
from pelacli.ranks.planner import measure, plan
from pelacli.ranks.size import ModelSize
from pelacli.ranks.spectrum import Spectrum


def spectrum(name, out, in_, decay=0.9, tokens=1.0):
    return Spectrum(name, (out, in_), decay ** np.arange(min(out, in_)), tokens)


def layers_of(*shapes):
    return [spectrum(f"layer{i}", *shape) for i, shape in enumerate(shapes)]


def cost(chosen):
    """Parameters of the planned layers, counted from the plan alone."""
    return sum(
        la.shape[0] * la.shape[1] if la.rank is None else la.rank * sum(la.shape)
        for la in chosen.layers.values()
    )


# --- the paper -----------------------------------------------------------------------------------

PAPER = {  # (in, out): ranks at c = 1.5, 2, 3; pela-facts.md section 3
    (768, 2304): (384, 288, 192),
    (768, 768): (256, 192, 128),
    (768, 3072): (409, 307, 204),
    (3072, 768): (409, 307, 204),
    (1024, 3072): (512, 384, 256),
    (1024, 1024): (341, 256, 170),
    (1024, 4096): (546, 409, 273),
    # Swin-B's stages
    (128, 384): (64, 48, 32),
    (256, 768): (128, 96, 64),
    (512, 1536): (256, 192, 128),
    (128, 512): (68, 51, 34),
    (256, 1024): (136, 102, 68),
    (512, 2048): (273, 204, 136),
}
RATIOS = (Fraction(2, 3), Fraction(1, 2), Fraction(1, 3))


@pytest.mark.parametrize(("shape", "ranks"), PAPER.items())
def test_uniform_gives_the_papers_ranks(shape, ranks):
    in_, out = shape
    for ratio, rank in zip(RATIOS, ranks, strict=True):
        chosen = plan(layers_of((out, in_)), Budget("uniform", ratio, scope="layers"))
        assert chosen.ranks() == {"layer0": rank}


def transformer(width, depth, *, proj=True):
    shapes = [(3 * width, width), (4 * width, width), (width, 4 * width)]
    return (shapes + [(width, width)] * proj) * depth


@pytest.mark.parametrize(
    ("shapes", "dense", "after"),
    [
        (transformer(768, 12), 86_567_656, (58_200_808, 44_081_896, 29_870_824)),
        (transformer(1024, 24), 304_374_760, (203_662_312, 153_232_360, 102_999_016)),
        (
            [
                shape
                for width, depth in ((128, 2), (256, 2), (512, 18), (1024, 2))
                for shape in transformer(width, depth, proj=False)
            ],
            87_768_224,
            (62_164_128, 49_291_936, 36_532_384),
        ),
    ],
    ids=["deit_base", "deit3_large", "swin_base"],
)
def test_uniform_gives_the_papers_totals(shapes, dense, after):
    fixed = dense - sum(out * in_ for out, in_ in shapes)
    for ratio, total in zip(RATIOS, after, strict=True):
        chosen = plan(layers_of(*shapes), Budget("uniform", ratio, scope="layers"))
        assert fixed + cost(chosen) == total
        assert chosen.used == cost(chosen)


def test_uniform_at_ratio_one_is_dense():
    chosen = plan(layers_of((8, 8), (3, 30)), Budget("uniform", Fraction(1), scope="layers"))
    assert [la.reason for la in chosen.layers.values()] == ["break-even"] * 2


# --- budgets -------------------------------------------------------------------------------------

shapes_of_layers = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5
)


@given(
    shapes=shapes_of_layers,
    ratio=st.fractions(Fraction(1, 20), Fraction(1), max_denominator=200),
    policy=st.sampled_from(["energy", "uniform"]),
    scope=st.sampled_from(["model", "layers"]),
    fixed=st.integers(0, 200),
    min_rank=st.integers(0, 3),
    extra=st.none() | st.integers(0, 6),
    multiple=st.integers(1, 4),
    pin=st.none() | st.sampled_from(["dense", "full"]) | st.integers(0, 12),
    unit=st.sampled_from(["params", "flops"]),
)
@settings(max_examples=300)
def test_budget_limits_and_pins_hold(
    shapes, ratio, policy, scope, fixed, min_rank, extra, multiple, pin, unit
):
    layers = [spectrum(f"layer{i}", *s, tokens=i % 3) for i, s in enumerate(shapes)]
    max_rank = None if extra is None else -(-max(min_rank, 1) // multiple) * multiple + extra
    if isinstance(pin, int):
        pin = min(pin, *shapes[0])
    pins = {} if pin is None else {"layer0": pin}
    size = ModelSize(fixed_params=fixed, fixed_flops=fixed)

    def at(ratio):
        budget = Budget(
            policy, ratio, unit=unit, scope=scope,
            min_rank=min_rank, max_rank=max_rank, multiple=multiple, pins=pins,
        )  # fmt: skip
        return plan(layers, budget, size)

    try:
        chosen = at(ratio)
    except RequestError as error:
        # Refused: then the ratio it names works, and a little less does not.
        if "nor any up to 1" in str(error):
            with pytest.raises(RequestError, match="nor any up to 1"):
                at(Fraction(1))
            return
        named = Fraction(re.search(r"smallest possible is ([\d.]+)", str(error))[1])
        assert named > ratio
        at(named)
        if named > Fraction(1, 10_000):
            with pytest.raises(RequestError, match=re.escape("cannot be met")):
                at(named - Fraction(1, 10_000))
        return

    def price(s, rank):
        per_weight = 1 if unit == "params" else int(2 * s.tokens)
        out, in_ = s.shape
        return per_weight * (out * in_ if rank is None else rank * (out + in_))

    base = fixed if scope == "model" else 0
    total = base + sum(price(s, None) for s in layers)
    used = base + sum(price(s, chosen.layers[s.name].rank) for s in layers)
    assert (chosen.limit, chosen.used, chosen.total) == (int(ratio * total), used, total)
    assert used <= chosen.limit
    for s in layers:
        entry, (out, in_) = chosen.layers[s.name], s.shape
        if s.name in pins:
            wanted = {"dense": None, "full": min(s.shape)}.get(pin, pin)
            assert entry.rank == wanted
            assert entry.reason == ("pinned dense" if wanted is None else None)
        elif entry.rank is None:
            assert entry.reason in ("break-even", "never applied")
        else:
            assert entry.rank >= min_rank
            assert entry.rank * (out + in_) < out * in_
            assert max_rank is None or entry.rank <= max_rank
            rounded = -(-min_rank // multiple) * multiple
            if rounded * (out + in_) < out * in_:  # else the layer is too small for the multiple
                assert entry.rank % multiple == 0
        expected = 1.0
        if entry.rank is not None:
            expected = s.energies[: entry.rank].sum() / s.energies.sum()
        assert entry.energy == pytest.approx(expected)
    assert 0 <= chosen.energy <= 1


def test_ratios_are_exact():
    layers = layers_of((10, 10))
    chosen = plan(layers, Budget("energy", Fraction("0.29"), scope="layers"))
    assert chosen.limit == 29  # int(0.29 * 100) is 28
    chosen = plan(layers, Budget("uniform", Fraction("0.6"), scope="layers"))
    assert (chosen.ranks(), chosen.used) == ({"layer0": 3}, 60)
    # One parameter in 10¹⁷, far below what a float can tell apart.
    total = 10**17 + 9
    for spare, rank in ((5, 0), (6, 1), (8, 1)):
        for policy in ("energy", "uniform"):
            chosen = plan(
                layers_of((3, 3)),
                Budget(policy, Fraction(10**17 + spare, total), min_rank=0),
                ModelSize(fixed_params=10**17),
            )
            assert chosen.ranks() == {"layer0": rank}


def test_flop_and_parameter_budgets_differ_where_tokens_do():
    early = spectrum("early", 64, 64, tokens=64)
    late = Spectrum("late", (64, 64), early.energies.copy(), 1)
    by_params = plan([early, late], Budget(ratio=Fraction(1, 2), scope="layers"))
    assert by_params.ranks() == {"early": 16, "late": 16}
    in_flops = Budget(ratio=Fraction(1, 2), scope="layers", unit="flops")
    by_flops = plan([early, late], in_flops)
    assert by_flops.layers["late"].rank is None  # cheap to run, so it is left whole
    assert by_flops.total == 2 * 65 * 64 * 64
    assert by_flops.limit == 65 * 64 * 64
    same = [Spectrum(s.name, s.shape, s.energies, 7) for s in (early, late)]
    assert plan(same, in_flops).ranks() == by_params.ranks()


def test_a_pin_past_break_even_is_obeyed_and_paid_by_the_others():
    layers = layers_of((10, 10), (10, 10), (10, 10))
    pins = {"layer0": 7, "layer1": "dense"}
    chosen = plan(layers, Budget("energy", Fraction("0.9"), scope="layers", pins=pins))
    assert chosen.ranks()["layer0"] == 7
    assert chosen.layers["layer1"] == LayerPlan((10, 10), None, "pinned dense", 1.0)
    assert chosen.ranks()["layer2"] == 1  # 270 − 140 − 100 leaves one rank of 20
    assert chosen.used == 260


def test_a_maximum_rank_below_break_even_forbids_dense():
    for policy in ("energy", "uniform"):  # break-even is rank 5
        for max_rank, ranks in ((4, {"layer0": 4}), (5, {})):
            budget = Budget(policy, Fraction(1), scope="layers", max_rank=max_rank)
            assert plan(layers_of((10, 10)), budget).ranks() == ranks
    budget = Budget("threshold", threshold=0.99, max_rank=4)
    assert plan(layers_of((10, 10)), budget).ranks() == {"layer0": 4}


# --- threshold -----------------------------------------------------------------------------------


def test_threshold_reports_what_it_cost_and_holds_a_budget_if_given():
    layers = [spectrum("steep", 20, 20, 0.5), spectrum("flat", 20, 20, 1.0)]
    chosen = plan(layers, Budget("threshold", threshold=0.9))
    assert chosen.ranks() == {"steep": 4}
    assert (chosen.layers["flat"].rank, chosen.layers["flat"].reason) == (None, "break-even")
    assert (chosen.ratio, chosen.limit, chosen.used) == (None, None, 4 * 40 + 400)
    assert chosen.layers["steep"].energy == pytest.approx(1 - 0.5**4, abs=1e-5)
    met = plan(layers, Budget("threshold", Fraction("0.7"), threshold=0.9))
    assert met.used == met.limit == 560
    with pytest.raises(RequestError, match=r"threshold 0\.9 gives ratio 0\.7, above .* 0\.69"):
        plan(layers, Budget("threshold", Fraction("0.69"), threshold=0.9))


@given(shapes=shapes_of_layers, threshold=st.floats(0.05, 1.0))
@settings(max_examples=100)
def test_threshold_is_met_by_the_plans_own_energies(shapes, threshold):
    layers = layers_of(*shapes)
    chosen = plan(layers, Budget("threshold", threshold=threshold, min_rank=0))
    for s in layers:
        entry = chosen.layers[s.name]
        assert entry.energy >= threshold
        assert entry.rank is None or entry.rank * sum(s.shape) < s.shape[0] * s.shape[1]
        if entry.rank:  # one rank less is not enough
            fewer = {s.name: LayerPlan(s.shape, entry.rank - 1)}
            assert measure(Plan("", "layers", None, fewer), [s]).energy < threshold


# --- energy of the whole -------------------------------------------------------------------------


def test_measure_follows_an_edit():
    layers = [Spectrum("a", (4, 40), np.array([4.0, 3.0, 2.0, 1.0])), spectrum("b", 6, 6, 1.0)]
    size = ModelSize(fixed_params=50)
    chosen = plan(layers, Budget("energy", Fraction(1, 2)), size)
    edited = Plan(chosen.policy, "model", "0.5", {"a": LayerPlan((4, 40), 2)})
    measured = measure(edited, layers, size)
    assert measured.layers["a"].energy == pytest.approx(0.7)
    assert measured.layers["b"] == LayerPlan((6, 6), None, "not in the plan", 1.0)
    assert measured.energy == pytest.approx((7 + 6) / 16)
    assert (measured.used, measured.total) == (50 + 88 + 36, 50 + 160 + 36)
    stray = Plan("by hand", "model", None, {"aa": LayerPlan((4, 40), 2)})
    with pytest.raises(RequestError, match=r"aa rank 2.*did you mean a\?"):
        measure(stray, layers)


# --- errors --------------------------------------------------------------------------------------


def test_an_impossible_budget_names_what_stands_in_the_way():
    # MiniLM: 22.7 M parameters, more than half of them in the word embeddings.
    shapes = [(384, 384)] * 24 + [(1536, 384), (384, 1536)] * 6
    rest = 22_713_216 - sum(out * in_ for out, in_ in shapes)
    obstacles = {"embeddings.word_embeddings": 11_720_448, "embeddings.LayerNorm": 768}
    size = ModelSize(fixed_params=rest, obstacles=obstacles)
    with pytest.raises(RequestError) as caught:
        plan(layers_of(*shapes), Budget("energy", Fraction("0.4")), size)
    least = rest + 24 * 768 + 12 * 1920
    assert str(caught.value) == (
        f"ratio 0.4 cannot be met: the smallest possible is {-(-least * 10**4 // 22_713_216) / 1e4}"
        ", because embeddings.word_embeddings (51.6 % of the parameters) is not factorised"
        "; scope layers counts the factorised layers only"
    )


def test_an_impossible_budget_names_pins_and_lowest_ranks():
    layers = layers_of((10, 10), (10, 10))
    tight = Budget("uniform", Fraction(1, 3), scope="layers", pins={"layer0": "dense"}, min_rank=2)
    with pytest.raises(RequestError) as caught:
        plan(layers, tight)
    assert str(caught.value) == (
        "ratio 1/3 cannot be met: the smallest possible is 0.7, because pins hold 50.0 % "
        "and the layers at their lowest ranks hold 20.0 %"
    )
    with pytest.raises(RequestError, match=r"ratio 0\.9 cannot be met, nor any up to 1, because"):
        plan(layers, Budget(ratio=Fraction("0.9"), pins={s.name: "full" for s in layers}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"policy": "best"}, "policy 'best' is none of energy, uniform, threshold"),
        ({"scope": "block"}, "scope 'block' is none of model, layers"),
        ({"ratio": Fraction(3, 2)}, "ratio 1.5 is not above 0 and at most 1"),
        ({"ratio": Fraction(0)}, "ratio 0 is not above 0"),
        ({"ratio": None}, "policy energy needs a ratio"),
        ({"threshold": 0.9}, "a threshold belongs to policy threshold"),
        ({"energy": 0.9}, "a ratio and a share of the energy can't both be met; give one"),
        ({"energy": 0.9, "policy": "uniform"}, "a share of all energy belongs to policy energy"),
        ({"energy": 1.1, "ratio": None}, "energy 1.1 is not above 0 and at most 1"),
        ({"policy": "threshold"}, "policy threshold needs a threshold"),
        ({"policy": "threshold", "threshold": 1.2}, "policy threshold needs a threshold"),
        ({"unit": "bytes"}, "unit 'bytes' is none of params, flops"),
        ({"min_rank": -1}, "minimum rank must be at least 0"),
        ({"multiple": 0}, "the multiple at least 1"),
        ({"min_rank": 10, "max_rank": 12, "multiple": 8}, "no multiple of 8 lies between"),
        ({"pins": {"attn.qvk": 3}}, "pin attn.qvk: no such layer is factorised; did you mean"),
        ({"pins": {"attn.qkv": 9}}, "pin attn.qkv: rank 9 is not between 0 and 8"),
        ({"pins": {"attn.qkv": "all"}}, "'all' is neither a rank"),
    ],
)  # fmt: skip
def test_a_bad_request_is_one_line(how, message):
    with pytest.raises(RequestError) as caught:
        plan([spectrum("attn.qkv", 24, 8)], Budget(**{"ratio": Fraction(1, 2)} | how))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_spectra_are_refused():
    with pytest.raises(RequestError, match="fc1: its weight or samples hold values that are not"):
        Spectrum("fc1", (2, 3), np.array([np.nan, 1.0]))
    with pytest.raises(ValueError, match="non-increasing"):
        Spectrum("fc1", (2, 3), np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="energies for a layer of shape"):
        Spectrum("fc1", (2, 3), np.ones(3))
    with pytest.raises(ValueError, match="same name"):
        plan([spectrum("a", 4, 4)] * 2, Budget("energy", Fraction(1, 2)))
    with pytest.raises(RequestError, match="no layer is left to factorise"):
        plan([], Budget("energy", Fraction(1, 2)))


def test_a_flop_budget_of_the_model_needs_its_other_flops():
    layers, budget = layers_of((4, 4)), Budget("energy", Fraction(1, 2), unit="flops", min_rank=0)
    with pytest.raises(ValueError, match="needs fixed_flops"):
        plan(layers, budget, ModelSize(fixed_params=10))
    assert plan(layers, budget, ModelSize(fixed_flops=8)).total == 8 + 2 * 16


def test_large_layers_go_by_eights_where_no_multiple_is_given():
    """As half-precision GPUs want it. Small layers, the paper's formula and tight budgets don't."""
    layers = layers_of((768, 768), (2304, 768), (64, 64), (3072, 768))
    ranks = {}
    for policy in ("energy", "uniform"):
        chosen = plan(layers, Budget(policy, Fraction("0.43"), scope="layers"))
        ranks[policy] = [la.rank for la in chosen.layers.values()]
    large = [rank for rank in ranks["energy"] if rank is not None and rank > 31]
    assert large
    assert all(rank % 8 == 0 for rank in large)
    assert any(rank % 8 for rank in ranks["uniform"])
    by_ones = plan(layers, Budget("energy", Fraction("0.43"), scope="layers", multiple=1))
    assert any((la.rank or 0) % 8 for la in by_ones.layers.values())
    tight = plan(layers, Budget("energy", Fraction("0.006"), scope="layers"))
    assert 0 < min(la.rank or 8 for la in tight.layers.values()) < 8
    with pytest.raises(RequestError, match="smallest possible"):
        plan(layers, Budget("energy", Fraction("0.001"), scope="layers"))


def test_a_layer_too_small_for_the_multiple_goes_by_single_ranks():
    layers = [spectrum("large", 100, 100), spectrum("small", 12, 12)]
    chosen = plan(layers, Budget("energy", Fraction(1, 2), scope="layers", multiple=16))
    assert chosen.ranks()["large"] % 16 == 0
    assert 1 <= chosen.ranks().get("small", 1) < 6


@given(st.data())
@settings(max_examples=50)
def test_order_of_layers_does_not_matter(data):
    layers = layers_of(*data.draw(shapes_of_layers))
    policy = data.draw(st.sampled_from(["energy", "uniform"]))
    ratio = data.draw(st.fractions(Fraction(1, 5), Fraction(1), max_denominator=20))
    budget, size = Budget(policy, ratio), ModelSize(fixed_params=3)
    try:
        chosen = plan(layers, budget, size)
    except RequestError:
        reject()
    other = plan(data.draw(st.permutations(layers)), budget, size)
    assert other == chosen
    assert list(chosen.layers) == [s.name for s in layers]


def test_no_torch():
    code = (
        "import sys, pelacli.ranks.planner, pelacli.manifest.document, pelacli.report.tables\n"
        "print([m for m in ('torch', 'timm', 'transformers', 'rich') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_more_to_spend_never_keeps_less_energy():
    """Not either where large layers begin to go by eights."""
    few = Spectrum("few", (200, 200), np.array([1.0] * 15 + [0.0] * 185), 1.0)
    flat = Spectrum("flat", (200, 200), np.full(200, 1e-6), 1.0)
    kept = []
    for limit in range(100, 1600, 7):  # of 10,000
        budget = Budget("energy", Fraction(limit, 10_000), scope="layers")
        chosen = plan([few, flat], budget)
        assert chosen.used <= chosen.limit
        kept.append(chosen.energy)
    assert kept == sorted(kept)
    assert plan([few, flat], Budget("energy", Fraction("0.08"), scope="layers")).energy > 0.9


@given(st.data())
@settings(max_examples=60)
def test_more_to_spend_never_keeps_less_energy_of_any_layers(data):
    sizes = st.tuples(st.sampled_from([40, 130, 200]), st.sampled_from([130, 200]))
    decay = st.sampled_from([0.3, 0.9, 0.99, 1.0])
    layers = [
        spectrum(f"layer{i}", *shape, decay=fall)
        for i, (shape, fall) in enumerate(
            data.draw(st.lists(st.tuples(sizes, decay), min_size=1, max_size=4))
        )
    ]
    low, high = sorted(data.draw(st.integers(50, 10_000)) for _ in range(2))  # ten-thousandths
    kept = []
    for limit in (low, high):
        try:
            kept.append(
                plan(layers, Budget("energy", Fraction(limit, 10_000), scope="layers")).energy
            )
        except RequestError:
            reject()
    assert kept[0] <= kept[1] + 1e-12
