"""Sequential correction and the lockstep walk that it rides on."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pelacli.factorize import calibration, engine, lockstep, refit
from pelacli.factorize.moments import Moments
from pelacli.factorize.regression import Regression
from pelacli.lowrank import find, replace
from pelacli.ranks.plan import LayerPlan, Plan


class Net(nn.Module):
    """Residual blocks, one layer that is read by ``F.linear``, and two branches."""

    def __init__(self, width=24, depth=3):
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(width, 2 * width) for _ in range(depth)])
        self.outer = nn.ModuleList([nn.Linear(2 * width, width) for _ in range(depth)])
        self.mix = nn.Linear(width, width)

    def forward(self, x):
        for a, b in zip(self.inner, self.outer, strict=True):
            x = x + b(F.gelu(a(F.layer_norm(x, x.shape[-1:]))))
        return F.linear(x, self.mix.weight, self.mix.bias).mean(1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def batches():
    torch.manual_seed(1)
    basis = torch.randn(24, 24) * torch.logspace(0, -2, 24)
    return [torch.randn(16, 5, 24) @ basis + 0.3 for _ in range(6)]


def predict(module, x):
    return module(x)


def error(dense, model, batches):
    with torch.no_grad():
        return sum(float((dense(x) - model(x)).square().sum()) for x in batches)


def test_lockstep_stops_all_walkers_at_each_layer_in_order(net, batches):
    layers = find.find_layers(net)
    seen = []
    with lockstep.lockstep(net, layers, batches, predict) as stops:
        for calls in stops:
            assert [call.walker for call in calls] == list(range(len(batches)))
            assert len({call.layer.name for call in calls}) == 1
            seen.append(calls[0].layer.name)
            for call in calls:
                call.apply = partial(F.linear, weight=call.weight, bias=call.bias)
    order = [f"{part}.{i}" for i in range(3) for part in ("inner", "outer")]
    assert seen == [*order, "mix"]


def test_an_output_is_made_when_its_walker_goes_on(net, batches):
    """Those of all walkers together would take as much memory as the streams themselves."""
    made = []

    def apply(number, layer, x):
        made.append(number)
        return F.linear(x, layer.weight, layer.bias)

    layers = find.find_layers(net)
    with lockstep.lockstep(net, layers, batches, predict) as stops:
        for calls in stops:
            before = len(made)
            for call in calls:
                call.apply = partial(apply, call.walker, call.layer)
            assert len(made) == before
    assert made == [*range(len(batches))] * len(layers)


def test_lockstep_passes_errors_on_and_leaves_no_threads(net, batches):
    import threading

    before = threading.active_count()

    def fails(module, x):
        module(x)
        raise RuntimeError("boom")

    def walk():
        with lockstep.lockstep(net, find.find_layers(net), batches, fails) as stops:
            for calls in stops:
                for call in calls:
                    call.apply = partial(F.linear, weight=call.weight, bias=call.bias)

    with pytest.raises(RuntimeError, match="boom"):
        walk()
    with lockstep.lockstep(net, find.find_layers(net), batches, predict) as stops:
        next(stops)  # and then the caller loses interest
    assert threading.active_count() == before


def test_full_rank_stays_dense(net, batches):
    layers = find.find_layers(net)
    moments = calibration.collect(net, layers, batches, predict)
    ranks = {layer.name: min(layer.shape) for layer in layers}
    model = copy.deepcopy(net)
    replace.replace(model, refit.correct(net, layers, ranks, moments, batches, predict))
    with torch.no_grad():
        assert torch.allclose(net(batches[0]), model(batches[0]), atol=1e-3)


def test_a_refit_without_biases_keeps_the_means(batches):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 32, bias=False), nn.Linear(32, 8, bias=False))
    batches = [x + 20.0 for x in batches]
    layers = find.find_layers(net)
    ranks = {"0": 3, "1": 2}
    moments = calibration.collect(net, layers, batches, predict)
    model = copy.deepcopy(net)
    replace.replace(model, refit.correct(net, layers, ranks, moments, batches, predict))
    with torch.no_grad():
        y, z = (torch.cat([m(x) for x in batches]).flatten(0, 1) for m in (net, model))
    assert float((y - z).mean(0).norm() / y.mean(0).norm()) < 0.01


class LateBias(nn.Linear):
    """A linear layer that adds its bias outside of the product, as Falcon's do."""

    def forward(self, x):
        return x @ self.weight.T + self.bias


def test_a_bias_outside_of_the_call_counts_once_in_every_batch(net, batches):
    """At full rank there is nothing to correct, so every batch must walk with the dense inputs."""
    for part in (net.inner, net.outer):
        for i, old in enumerate(part):
            part[i] = LateBias(old.in_features, old.out_features)
            nn.init.normal_(part[i].bias)
    layers = find.find_layers(net)
    assert all(layer.reason is None for layer in layers)
    ranks = {layer.name: min(layer.shape) for layer in layers}
    factors = refit.correct(net, layers, ranks, {}, batches, predict)
    model = copy.deepcopy(net)
    replace.replace(model, factors)
    for layer in layers:
        assert torch.allclose(factors[layer.name][2], layer.bias, atol=1e-4), layer.name
    with torch.no_grad():
        for x in batches:
            assert torch.allclose(net(x), model(x), atol=1e-3)


def regression(inputs, targets):
    """What the best affine map of the inputs makes of the targets, by lstsq, in float64."""
    inputs, targets = inputs.double(), targets.double()
    centred = inputs - inputs.mean(0)
    solution = torch.linalg.lstsq(centred, targets - targets.mean(0)).solution
    return centred @ solution + targets.mean(0)


@pytest.mark.parametrize("payback", [0.0, 0.7])
def test_least_squares_of_the_compressed_stream(net, batches, payback):
    """Without a ridge an uncut layer is the regression of what is wanted on the compressed input:
    the dense output, and with payback what the residual stream has lost too."""
    cut = ("inner.0", "outer.0", "inner.1", "outer.1")
    layers = [la for la in find.find_layers(net) if la.name in cut]
    ranks = dict(zip(cut, (6, 6, 24, 24), strict=True))
    found = refit.correct(net, layers, ranks, {}, batches, predict, ridge=1e-7, payback=payback)

    def low_rank(name, x):
        down, up, bias = found[name]
        return F.linear(F.linear(x, down), up, bias)

    with torch.no_grad():
        dense = torch.cat(batches).reshape(-1, 24)
        ours = dense.clone()
        dense = dense + net.outer[0](F.gelu(net.inner[0](F.layer_norm(dense, (24,)))))
        ours = ours + low_rank("outer.0", F.gelu(low_rank("inner.0", F.layer_norm(ours, (24,)))))
        hidden = F.gelu(net.inner[1](F.layer_norm(dense, (24,))))
        inputs = F.gelu(low_rank("inner.1", F.layer_norm(ours, (24,))))
        target = net.outer[1](hidden) + payback * (dense - ours)
        got = low_rank("outer.1", inputs).double()
    wanted = regression(inputs, target)
    assert (got - wanted).square().mean() < 1e-4 * (target - wanted).square().mean()
    assert torch.allclose(got.mean(0), target.double().mean(0), atol=1e-4)


def test_the_ridge_holds_to_the_old_weight(net, batches):
    layers = [la for la in find.find_layers(net) if la.name in ("inner.0", "outer.0")]
    ranks = {"inner.0": 6, "outer.0": 24}

    def distance(ridge):
        found = refit.correct(net, layers, ranks, {}, batches, predict, ridge=ridge)
        down, up, _ = found["outer.0"]
        weight = net.outer[0].weight.detach()
        return float((up @ down - weight).norm() / weight.norm())

    assert distance(1e4) < 1e-3 < distance(1e-2)


@pytest.mark.parametrize("rank", [4, 8])
def test_correction_lowers_the_error_of_the_output(net, batches, rank):
    layers = find.find_layers(net)
    moments = calibration.collect(net, layers, batches, predict)
    # the last layer is whole, or its own cut would be most of the error
    ranks = {layer.name: 24 if layer.name == "mix" else rank for layer in layers}
    plan = Plan(
        "by hand", "model", None, {la.name: LayerPlan(la.shape, ranks[la.name]) for la in layers}
    )
    weight = {name: layer.weight.clone() for name, layer in zip(ranks, layers, strict=True)}

    one_shot = copy.deepcopy(net)
    engine.apply(one_shot, find.find_layers(one_shot), moments, plan)
    corrected = copy.deepcopy(net)
    replace.replace(corrected, refit.correct(net, layers, ranks, moments, batches, predict))
    assert error(net, corrected, batches) < 0.9 * error(net, one_shot, batches)
    for layer in layers:  # the dense model is left as it was
        assert torch.equal(layer.weight, weight[layer.name])


@pytest.mark.parametrize("layer", [nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(9, 6, bias=False)])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_sums_of_batches_of_any_size_are_those_of_all_at_once(layer, scale):
    """Whatever mean and size the first batch has."""
    torch.manual_seed(0)
    known = find.find_layers(nn.Sequential(layer))[0]
    dense = (torch.randn(400, known.shape[1]) + 3) * scale
    dense[:100] *= 1e-4
    ours = dense + 0.1 * scale * torch.randn_like(dense)
    weights = torch.rand(400)

    def fitted(size):
        sums = Regression(known, Moments())
        for x, y, w in zip(*(t.split(size) for t in (dense, ours, weights)), strict=True):
            sums.add(x, y, w, lambda x=x: x @ layer.weight.detach().T)
        down, up, bias = sums.factors(6, 1e-3)
        return up.double() @ down.double(), bias

    (many, bias), (one, wanted) = fitted(100), fitted(400)
    assert torch.allclose(many, one, rtol=1e-3, atol=1e-3)
    if bias is not None:
        assert torch.allclose(bias, wanted, rtol=1e-3, atol=1e-3 * scale)
