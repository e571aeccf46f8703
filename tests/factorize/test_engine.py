"""The calls that steps and API share: cut, pin, plan, factor, refuse."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from pelacli.errors import RequestError
from pelacli.factorize import calibration, engine
from pelacli.lowrank import find as lowrank_find
from pelacli.lowrank import replace
from pelacli.lowrank.linear import LowRankLinear
from pelacli.ranks import pins, planner
from pelacli.ranks.budget import Budget
from pelacli.ranks.plan import LayerPlan, Plan


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.LayerNorm(16), nn.Linear(16, 4, False)
    )


def find(net):
    return lowrank_find.find_layers(net)


def predict(module, x):
    return module(x)


def test_solving_keeps_the_vectors_below_break_even(net):
    advances = []
    solutions = engine.solve(find(net), {}, advance=lambda: advances.append(1))
    assert kept(solutions) == {"0": 11, "2": 11, "4": 4}
    assert [len(solution.energies) for solution in solutions.values()] == [16, 16, 4]
    assert len(advances) == 3
    assert kept(engine.solve(find(net), {}, keep=engine.Keep.ALL)) == {"0": 16, "2": 16, "4": 4}
    assert kept(engine.solve(find(net), {}, keep=engine.Keep.NOTHING)) == {"0": 0, "2": 0, "4": 0}


def kept(solutions):
    """How many vectors of each layer can be read back."""
    return {
        name: max(n for n in range(17) if n == 0 or solution.leading_vectors(n) is not None)
        for name, solution in solutions.items()
    }


@pytest.mark.parametrize("calibrated", [False, True])
def test_factors_are_the_same_whether_or_not_vectors_were_kept(net, calibrated):
    x = torch.randn(64, 16)
    moments = calibration.collect(net, find(net), [x], predict) if calibrated else {}
    plan = Plan("by hand", "model", None, {"0": LayerPlan((32, 16), 7), "4": LayerPlan((4, 16), 2)})
    for_keep = []
    for keep in engine.Keep:
        solutions = engine.solve(find(net), moments, keep=keep)
        for_keep.append(engine.factors(find(net), solutions, moments, plan))
    for factors in for_keep[1:]:
        for name, (down, up, _) in factors.items():
            expected = for_keep[0][name][1] @ for_keep[0][name][0]
            assert torch.allclose(up @ down, expected, atol=1e-5)


def test_applying_a_plan_gives_the_model_its_factors(net):
    plan = Plan("by hand", "model", None, {"0": LayerPlan((32, 16), 7), "4": LayerPlan((4, 16), 2)})
    solutions = engine.solve(find(net), {})
    factors = engine.factors(find(net), solutions, {}, plan)
    layers = find(net)
    engine.apply(net, layers, {}, plan, solutions=solutions)
    for name, (down, up, _) in factors.items():
        assert torch.equal(net[int(name)].down.weight, down)
        assert torch.equal(net[int(name)].up.weight, up)
    assert not list(layers[0].module.parameters())  # the dense weight is let go


def test_spectra_are_squared_singular_values(net):
    layers = find(net)
    for spectrum, layer in zip(
        engine.spectra(layers, engine.solve(layers, {}), {}), layers, strict=True
    ):
        exact = torch.linalg.svdvals(layer.weight.double()).square().numpy()
        assert np.allclose(spectrum.energies, exact, rtol=1e-4, atol=1e-6 * exact[0])
        assert (spectrum.name, spectrum.shape, spectrum.tokens) == (layer.name, layer.shape, 1.0)


def test_energies_are_damage_per_sample(net):
    """Of a linear model the damage is exact: E‖(y − y′)/std‖², up to damping."""
    model = nn.Sequential(nn.Linear(16, 12))
    layers = lowrank_find.find_layers(model)
    x = torch.randn(4096, 16) @ torch.randn(16, 16)
    moments = calibration.collect(model, layers, [x], predict)
    cuts = engine.solve(layers, moments, keep=engine.Keep.ALL)
    plan = planner.plan(
        engine.spectra(layers, cuts, moments), Budget("uniform", Fraction("0.6"), scope="layers")
    )  # fmt: skip
    model.requires_grad_(False)
    before = model(x)
    rank = plan.ranks()["0"]
    replace.replace(model, engine.factors(layers, cuts, moments, plan))
    damage = ((model(x) - before) / before.std(0, correction=0)).square().sum(1).mean()
    assert float(damage) == pytest.approx(float(cuts["0"].energies[rank:].sum()), rel=0.1)


def test_biases_take_up_the_mean_only_where_it_is_known(net):
    layers = find(net)
    plan = planner.plan(
        engine.spectra(layers, engine.solve(layers, {}), {}),
        Budget("uniform", Fraction(1, 2), scope="layers"),
    )  # fmt: skip
    x = torch.randn(64, 16) + 3
    moments = calibration.collect(net, layers, [x], predict)
    for known in ({}, moments):
        cuts = engine.solve(layers, known)
        found = engine.factors(layers, cuts, known, plan)
        assert set(found) == set(plan.ranks())
        down, up, bias = found["0"]
        assert torch.equal(bias, net[0].bias) == (not known)
        mean = moments["0"].mean.float()  # weighted by how strongly the rows are felt
        shifted = up @ (down @ mean) + bias - (net[0].weight @ mean + net[0].bias)
        assert (shifted.norm() < 1e-4) == bool(known)
        assert found["4"][2] is None


def test_dense_layers_have_no_factors(net):
    layers = find(net)
    cuts = engine.solve(layers, {}, keep=engine.Keep.ALL)
    plan = planner.plan(
        engine.spectra(layers, cuts, {}),
        Budget("uniform", Fraction("0.9"), scope="layers", pins={"0": "dense", "2": 3}),
    )  # fmt: skip
    found = engine.factors(layers, cuts, {}, plan)
    assert "0" not in found
    assert found["2"][0].shape == (3, 32)
    replace.replace(net, found)
    assert not isinstance(net[0], LowRankLinear)


def test_the_last_pin_wins_and_each_must_match(net):
    layers = find(net)
    assert pins.pins_by_name(layers, {".": "dense", "^2$": 5}) == {
        "0": "dense",
        "2": 5,
        "4": "dense",
    }
    with pytest.raises(RequestError, match=r"pin 'zzz': matches no layer"):
        pins.pins_by_name(layers, {"zzz": 3})


def test_patterns_must_match_something(net):
    right = lowrank_find.Selection(exclude=["^0$", "4"])
    assert lowrank_find.find_dense(net, right, "the net", flag_prefix="--")
    wrong = lowrank_find.Selection(exclude=["4", "zzz"])
    with pytest.raises(RequestError, match=r"--exclude 'zzz': matches no module .* look like"):
        lowrank_find.find_dense(net, wrong, "the net", flag_prefix="--")


def test_what_no_plan_changes(net):
    free = [la for la in find(net) if la.name != "4"]
    assert lowrank_find.fixed_params(net, free) == (32 + 16) + 2 * 16 + 16 * 4
    assert lowrank_find.fixed_params(net, []) == sum(p.numel() for p in net.parameters())


def test_low_precision_weights_keep_their_type():
    net = nn.Sequential(nn.Linear(16, 32)).to(torch.bfloat16)
    layers = find(net)
    everything = Plan("by hand", "model", None, {"0": LayerPlan((32, 16), 16)})
    solutions = engine.solve(layers, {}, keep=engine.Keep.ALL)
    down, up, _ = engine.factors(layers, solutions, {}, everything)["0"]
    assert down.dtype is up.dtype is torch.bfloat16
    assert torch.allclose((up @ down).float(), net[0].weight.float(), atol=0.02)
