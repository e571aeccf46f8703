"""Moments against an independent computation with hooks."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pelacli.errors import RequestError
from pelacli.factorize import calibration, engine
from pelacli.factorize.passes import Passes, draws_of
from pelacli.lowrank import find, replace
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget


class Net(nn.Module):
    """Wide, narrow, square; the last weight is read and applied by ``F.linear``."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 10), nn.Linear(10, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.b(torch.tanh(self.a(x)))
        return F.linear(input=torch.relu(x), weight=self.c.weight, bias=self.c.bias).mean(1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def samples():
    torch.manual_seed(1)
    return torch.randn(48, 5, 6) @ torch.randn(6, 6) + 2.0


def predict(module, x):
    return module(x)


def by_hand(net, samples, seed=0, batch=16, projections=2):
    """Inputs x [tokens, in], output-gradients g [projections, tokens, out] and token weights of
    every layer, walked explicitly."""
    found = {name: ([], [], []) for name in "abc"}
    net = copy.deepcopy(net)
    for number, x in enumerate(samples.split(batch)):
        generator = draws_of(Passes(seed=seed), number)
        outputs, h = {}, x
        for name in "abc":
            layer = getattr(net, name)
            found[name][0].append(h.detach().reshape(-1, h.shape[-1]).double())
            h = outputs[name] = layer(h)
            h.retain_grad()
            h = torch.tanh(h) if name == "a" else torch.relu(h) if name == "b" else h
        y = h.mean(1)
        std, felt = y.detach().std(0, correction=0), {name: [] for name in "abc"}
        for _ in range(projections):
            signs = torch.randint(0, 2, y.shape, generator=generator) * 2.0 - 1
            (y / std * signs).sum().backward(retain_graph=True)
            for name, out in outputs.items():
                felt[name].append(out.grad.reshape(-1, out.shape[-1]).double())
                out.grad = None
        for name, grads in felt.items():
            g = torch.stack(grads)
            strength = g.square().sum((0, 2)).sqrt()
            found[name][1].append(g)
            found[name][2].append(0.8 * strength / strength.mean() + 0.2)
    return {
        name: (torch.cat(x), torch.cat(g, 1), torch.cat(w)) for name, (x, g, w) in found.items()
    }


def test_moments_are_those_of_the_definition(net, samples):
    layers = find.find_layers(net)
    got = calibration.collect(net, layers, samples.split(16), predict)
    for layer in layers:
        x, g, w = by_hand(net, samples)[layer.name]
        W, g = layer.weight.double(), g.flatten(0, 1)
        C, G = torch.cov(x.T, correction=0, aweights=w), g.T @ g / len(samples) / 2
        near, far = (C, W.T @ G @ W) if W.shape[1] < W.shape[0] else (G, W @ C @ W.T)
        m = got[layer.name]
        assert torch.allclose(m.mean, (w @ x) / w.sum(), atol=1e-5)
        assert torch.allclose(m.near, near, rtol=1e-3, atol=1e-5 * float(near.norm()))
        assert torch.allclose(m.far, far, rtol=1e-3, atol=1e-5 * float(far.norm()))
        levels = (float(C.diagonal().mean()), float(G.diagonal().mean()))
        wide = W.shape[1] < W.shape[0]
        assert (m.near_level, m.far_level) == pytest.approx(
            levels if wide else levels[::-1], rel=1e-3
        )
        assert m.tokens == 5
        assert torch.allclose(torch.cat(list(m.weights.values())).double(), w, rtol=1e-4)


def test_a_layer_without_a_bias_keeps_the_mean_in_its_moments(net, samples):
    """There is nothing that could take it up: C is E[x xᵀ]."""
    net.a.bias = net.b.bias = None
    layers = find.find_layers(net)
    got = calibration.collect(net, layers, samples.split(16), predict, Passes(floor=1.0))
    with torch.no_grad():
        a = samples.double().flatten(0, 1)
        b = torch.tanh(net.a(samples)).double().flatten(0, 1)
        outer = net.b.weight.double()
    assert torch.allclose(got["a"].near, a.T @ a / len(a), rtol=1e-4)
    assert torch.allclose(got["b"].far, outer @ (b.T @ b / len(b)) @ outer.T, rtol=1e-4)
    assert got["a"].near_level == pytest.approx(float(a.square().mean()), rel=1e-4)
    assert got["a"].mean is got["b"].mean is None
    assert got["c"].mean is not None


class Offset(nn.Module):
    """Two layers whose inputs have a mean that is large beside their spread."""

    def __init__(self, bias):
        super().__init__()
        self.a, self.b = nn.Linear(16, 24, bias=bias), nn.Linear(24, 8, bias=bias)

    def forward(self, x):
        return self.b(self.a(x)).mean(1)


@pytest.mark.parametrize("bias", [True, False])
def test_a_large_mean_of_the_inputs_survives_the_cut(bias):
    torch.manual_seed(0)
    net = Offset(bias)
    x = torch.randn(64, 5, 16) * torch.linspace(1, 0.01, 16) + 10 * torch.randn(16)
    layers = find.find_layers(net)
    moments = calibration.collect(net, layers, x.split(16), predict)
    solutions = engine.solve(layers, moments)
    plan = planner.plan(
        engine.spectra(layers, solutions, moments),
        Budget("uniform", Fraction(2, 3), scope="layers"),
    )
    small = copy.deepcopy(net)
    replace.replace(small, engine.factors(layers, solutions, moments, plan))
    with torch.no_grad():
        y, z = net(x), small(x)
    assert float((y - z).square().sum() / (y - y.mean(0)).square().sum()) < 0.25


def test_tokens_weigh_by_how_strongly_they_are_felt(net, samples):
    class First(Net):
        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))[:, 0]  # the other tokens lead nowhere

    first = First()
    first.load_state_dict(net.state_dict())
    layers = [la for la in find.find_layers(first) if la.name != "c"]
    batches = samples.split(16)
    felt = calibration.collect(first, layers, batches, predict, Passes(floor=0.0))
    alone = calibration.collect(
        first, layers, [x[:, :1] for x in batches], predict, Passes(floor=0.0)
    )
    for name, m in felt.items():
        assert torch.allclose(m.mean, alone[name].mean, atol=1e-5)
        for side in ("near", "far"):
            a, b = getattr(m, side), getattr(alone[name], side)
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(b.norm()))
    even = calibration.collect(first, layers, batches, predict, Passes(floor=1.0))
    assert torch.allclose(even["a"].mean, samples.mean((0, 1)).double(), atol=1e-5)


def test_a_layer_off_the_way_counts_as_if_felt_like_the_others(net, samples):
    class Pooled(Net):
        def __init__(self):
            super().__init__()
            self.pool = nn.Linear(4, 4)

        def forward(self, x):
            h = self.b(torch.tanh(self.a(x)))
            self.pool(h[:, 0])  # another head would read it
            return F.linear(h, self.c.weight, self.c.bias).mean(1)

    pooled = Pooled()
    layers = find.find_layers(pooled)
    got = calibration.collect(pooled, layers, samples.split(16), predict)
    levels = {name: got[name].far_level if name == "a" else got[name].near_level for name in "abc"}
    with torch.no_grad():
        x = pooled.b(torch.tanh(pooled.a(samples)))[:, 0].double()
    W = pooled.pool.weight.detach().double()
    expected = sorted(levels.values())[1] * W @ torch.cov(x.T, correction=0) @ W.T
    assert got["pool"].near is None
    assert torch.allclose(got["pool"].far, expected, rtol=1e-3, atol=1e-6)


def test_inputs_alone_do_not_depend_on_how_they_are_batched(net, samples):
    layers = find.find_layers(net)
    one, many = (
        calibration.collect(net, layers, samples.split(n), predict, Passes(gradients=False))
        for n in (48, 7)
    )
    for name in one:
        for field in ("mean", "near", "far"):
            a, b = getattr(one[name], field), getattr(many[name], field)
            assert (a is None) == (b is None)
            assert a is None or torch.allclose(a, b, rtol=1e-3, atol=1e-4)
    assert one["a"].far is None  # the identity: no gradients were asked for
    assert one["b"].near is None


def test_padding_is_no_token(net, samples):
    class Masked(Net):
        def forward(self, x, attention_mask):
            h = self.c(torch.relu(self.b(torch.tanh(self.a(x)))))
            weight = attention_mask[..., None].float()
            return (h * weight).sum(1) / weight.sum(1)

    masked = Masked()
    masked.load_state_dict(net.state_dict())
    layers = find.find_layers(masked)

    def run(module, batch):
        return module(**batch)

    mask = torch.ones(48, 5, dtype=torch.long)
    plain = calibration.collect(masked, layers, [{"x": samples, "attention_mask": mask}], run)
    padded = torch.cat([samples, torch.full((48, 3, 6), 1e3)], 1)
    longer = torch.cat([mask, torch.zeros(48, 3, dtype=torch.long)], 1)
    with_padding = calibration.collect(
        masked, layers, [{"x": padded, "attention_mask": longer}], run
    )
    for name, m in plain.items():
        assert torch.allclose(m.near, with_padding[name].near, rtol=1e-3, atol=1e-5)
        assert torch.allclose(m.far, with_padding[name].far, rtol=1e-3, atol=1e-5)
        assert m.tokens == with_padding[name].tokens


def test_the_model_is_left_as_it_was(net, samples):
    net.train()
    net.b.weight.requires_grad_(False)
    calibration.collect(net, find.find_layers(net), [samples], predict)
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == [True, True, False, True, True, True]
    assert all(p.grad is None for p in net.parameters())


def test_transformers_conv1d_is_seen():
    from transformers.pytorch_utils import Conv1D

    net = nn.Sequential(Conv1D(8, 5), nn.GELU(), Conv1D(5, 8))
    layers = find.find_layers(net)
    assert [(la.kind, la.shape) for la in layers] == [("conv1d", (8, 5)), ("conv1d", (5, 8))]
    x = torch.randn(32, 5)
    got = calibration.collect(net, layers, [x], predict, Passes(floor=1.0))
    assert torch.allclose(got["0"].near, torch.cov(x.T, correction=0).double(), atol=1e-4)


def test_what_can_not_be_calibrated_on(net, samples):
    layers = find.find_layers(net)
    with pytest.raises(RequestError, match="no samples"):
        calibration.collect(net, layers, [], predict)
    samples[0, 0, 0] = float("inf")
    with pytest.raises(RequestError, match="not finite"):
        calibration.collect(net, layers, [samples], predict)


def test_inputs_alone_are_the_covariance_times_the_tokens(net, samples):
    layers = find.find_layers(net)
    got = calibration.collect(net, layers, [samples], predict, Passes(gradients=False))
    hands = by_hand(net, samples)
    x, b = hands["a"][0], hands["b"][0]
    assert torch.allclose(got["a"].near, 5 * torch.cov(x.T, correction=0), rtol=1e-3, atol=1e-4)
    W = net.b.weight.detach().double()
    assert torch.allclose(
        got["b"].far, 5 * W @ torch.cov(b.T, correction=0) @ W.T, rtol=1e-3, atol=1e-4
    )


def test_each_part_keeps_its_own_mode(net, samples):
    """A part that is frozen in eval mode stays there in a model that is training."""
    net.train()
    net.b.eval()

    def fails(module, x):
        assert not any(m.training for m in module.modules())
        raise RuntimeError("boom")

    calibration.collect(net, find.find_layers(net), [samples], predict)
    with pytest.raises(RuntimeError, match="boom"):
        calibration.collect(net, find.find_layers(net), [samples], fails)
    assert [m.training for m in (net, net.a, net.b, net.c)] == [True, True, False, True]
    assert all(p.requires_grad for p in net.parameters())


def test_a_layer_that_never_runs_is_missing(samples):
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle, self.busy = nn.Linear(6, 6), nn.Linear(6, 6)
            self.skip = False

        def forward(self, x):
            return (x if self.skip else self.busy(x)).mean(1)

    net = Idle()
    layers = find.find_layers(net)
    assert set(calibration.collect(net, layers, [samples], predict)) == {"busy"}
    net.skip = True
    assert calibration.collect(net, layers, [samples], predict) == {}


def test_the_signs_come_from_the_seed(net, samples):
    layers = find.find_layers(net)
    one, same, other = (
        calibration.collect(net, layers, [samples], predict, Passes(seed=s))["b"].near
        for s in (3, 3, 4)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
