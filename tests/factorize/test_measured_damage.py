"""What a cut does to the output is measured as it is, and layers are compared by it."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pelacli.factorize import blockwise, calibration, engine, measured_damage, sensitivity
from pelacli.factorize.factors import absorb_mean, cut
from pelacli.factorize.measured_damage import Damage
from pelacli.factorize.passes import Passes, draws_of
from pelacli.lowrank import find
from pelacli.ranks.spectrum import Spectrum
from pelacli.system.shelf import Shelf
from tests.factorize.test_blockwise import CAUSAL, Parts


class Pooled(nn.Module):
    """Two layers after each other, and the mean of the tokens."""

    def __init__(self, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 16, bias=bias), nn.Linear(16, 6, bias=bias)

    def forward(self, x):
        return self.b(torch.relu(self.a(x))).mean(1)


def predict(module, x):
    return module(x)


def calibrated(module, batches, seed=0):
    layers = find.free_layers(find.find_layers(module), "net")
    moments = calibration.collect(module, layers, batches, predict, Passes(seed=seed))
    return layers, moments, engine.solve(layers, moments)


def texts(count=64, length=7, width=8):
    """Samples whose tokens are alike."""
    torch.manual_seed(1)
    return torch.randn(count, 1, width) + 0.3 * torch.randn(count, length, width) + 1.0


@pytest.mark.parametrize("bias", [True, False])
def test_the_damage_is_the_square_of_what_all_tokens_of_a_sample_do_together(bias):
    net = Pooled(bias)
    batches = list(texts().split(16))
    layers, moments, solutions = calibrated(net, batches)
    damage = measured_damage.measure(net, layers, solutions, moments, batches, predict, seed=3)
    passes = measured_damage.passes_of(3)
    for layer in layers:
        known, weight = moments[layer.name], layer.weight.detach()
        rank = measured_damage.reference_rank(layer.shape)
        down, up = cut(weight, known, rank)
        bias_change = torch.zeros(layer.shape[0])
        if layer.bias is not None:
            bias_change = absorb_mean(weight, layer.bias, down, up, known.mean) - layer.bias
        change = (up @ down).float() - weight
        squares = []
        for number, x in enumerate(batches):
            copied = copy.deepcopy(net)
            part = dict(copied.named_modules())[layer.name]
            seen = []
            part.register_forward_hook(lambda m, i, o, seen=seen: seen.extend([i[0], o]))
            output = copied(x)
            seen[1].retain_grad()
            sensitivity.projection(output, draws_of(passes, number)).backward()
            error = seen[0] @ change.T + bias_change
            squares.append((seen[1].grad * error).sum((1, 2)).square())
        squares = torch.cat(squares).detach().double()
        assert damage[layer.name].count == 64
        assert damage[layer.name].total == pytest.approx(float(squares.sum()), rel=1e-4)
        assert damage[layer.name].squares == pytest.approx(float(squares.square().sum()), rel=1e-3)


def test_tokens_that_err_alike_before_a_mean_weigh_as_much_as_they_do_together():
    """The energies take them for independent: seven tokens then count for one."""
    net = Pooled()
    batches = list(texts(256).split(32))
    layers, moments, solutions = calibrated(net, batches)
    damage = measured_damage.measure(net, layers, solutions, moments, batches, predict, seed=0)
    spectra = engine.spectra(layers, solutions, moments)
    ratio = {
        s.name: damage[s.name].mean / s.energies[measured_damage.reference_rank(s.shape) :].sum()
        for s in spectra
    }
    assert ratio["b"] > 2


def test_the_model_stays_dense_and_its_weights_want_no_gradients():
    net = Pooled()
    before = copy.deepcopy(net.state_dict())
    batches = list(texts(32).split(16))
    layers, moments, solutions = calibrated(net, batches)
    measured_damage.measure(net, layers, solutions, moments, batches, predict, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_solutions_without_vectors_are_solved_again():
    net = Pooled()
    batches = list(texts(32).split(16))
    layers, moments, solutions = calibrated(net, batches)
    bare = engine.solve(layers, moments, keep=engine.Keep.NOTHING)
    ours = measured_damage.measure(net, layers, solutions, moments, batches, predict, seed=0)
    theirs = measured_damage.measure(net, layers, bare, moments, batches, predict, seed=0)
    for name, known in ours.items():
        assert known.total == pytest.approx(theirs[name].total, rel=1e-4)


class Routed(nn.Module):
    """One layer gets some tokens alone, of which nobody knows whose they are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 6)

    def forward(self, x):
        h = torch.relu(self.a(x))
        chosen = torch.zeros(h.shape[:2], dtype=torch.bool)
        chosen[0, :3] = chosen[2, :2] = True
        y = h.new_zeros(*h.shape[:2], 6)
        y[chosen] = self.b(h[chosen])
        return y.mean(1)


def test_tokens_whose_sample_is_unknown_count_as_one_sample():
    net = Routed()
    batches = list(texts(32).split(4))
    layers, moments, solutions = calibrated(net, batches)
    damage = measured_damage.measure(net, layers, solutions, moments, batches, predict, seed=0)
    assert damage["a"].count == 32
    assert damage["b"].count == 8


@pytest.mark.parametrize("name", CAUSAL)
def test_block_by_block_is_the_same_as_the_whole_model_at_once(name):
    parts = Parts(name, CAUSAL[name], True)
    moments = calibration.collect(
        parts.module, parts.layers, parts.batches, parts.run, head=parts.head
    )
    solutions = engine.solve(parts.layers, moments)
    some = measured_damage.first(parts.batches, 24)
    assert 0 < len(some) < len(parts.batches)
    whole = measured_damage.measure(
        parts.module, parts.layers, solutions, moments, some, parts.run, seed=5, head=parts.head
    )
    shelf = Shelf()
    blockwise.collect(parts.sections, parts.batches, shelf, head=parts.head)
    found = blockwise.damage(
        parts.sections, solutions, moments, some, shelf, seed=5, head=parts.head
    )
    assert found.keys() == whole.keys()
    for layer, known in whole.items():
        assert found[layer].count == known.count
        assert found[layer].total == pytest.approx(known.total, rel=1e-3)


def spectrum(name, left_out):
    """Energies of a layer of 8 × 8 with so much beyond the reference rank of 2."""
    return Spectrum(name, (8, 8), np.array([10.0, 10.0, *[left_out / 6] * 6]))


def measured(mean, count=10**6):
    """Damage of so many samples, all alike."""
    return Damage(count, mean * count, mean**2 * count)


def test_energies_become_what_was_measured_where_chance_explains_nothing():
    spectra = [spectrum("a", 1.0), spectrum("b", 1.0)]
    damage = {"a": measured(10.0), "b": measured(0.5)}
    ours = measured_damage.scaled(spectra, measured_damage.scales(spectra, damage))
    assert float(ours[0].energies[2:].sum()) == pytest.approx(10.0, rel=1e-4)
    assert float(ours[1].energies[2:].sum()) == pytest.approx(0.5, rel=1e-4)


def test_a_spread_that_chance_explains_moves_hardly_a_rank():
    draw = np.random.default_rng(0)
    spectra = [spectrum(str(number), 1.0) for number in range(400)]
    damage = {}
    for s in spectra:
        d = draw.chisquare(1, 16)
        damage[s.name] = Damage(16, float(d.sum()), float(np.square(d).sum()))
    scales = measured_damage.scales(spectra, damage)
    before = np.log([known.mean for known in damage.values()]).std()
    assert before > 0.3
    assert np.log([*scales.values()]).std() < 0.3 * before


def test_a_layer_that_nothing_is_known_of_gets_the_mean_scale():
    spectra = [spectrum("a", 1.0), spectrum("b", 1.0), spectrum("c", 1.0), spectrum("d", 0.0)]
    damage = {"a": measured(8.0), "b": measured(2.0), "d": measured(1.0)}
    scales = measured_damage.scales(spectra, damage)
    assert scales["c"] == scales["d"] == pytest.approx(4.0, rel=1e-4)


def test_damage_that_is_not_finite_changes_nothing():
    spectra = [spectrum("a", 1.0)]
    for wrong in (
        Damage(), replace(measured(1.0), total=float("nan")),
        replace(measured(1.0), squares=float("inf")), measured(1.0, count=1),
    ):  # fmt: skip
        assert measured_damage.scales(spectra, {"a": wrong}) == {}


@pytest.mark.parametrize(("samples", "wanted"), [(8, 8), (20, 16), (128, 32), (1000, 64)])
def test_a_quarter_of_the_samples_is_measured_on(samples, wanted):
    batches = list(torch.zeros(samples, 3).split(4))
    assert sum(map(len, measured_damage.first(batches, samples))) == wanted


def test_the_damage_of_processes_adds_up():
    shares = [{"a": Damage(2, 3.0, 5.0), "b": Damage(1, 1.0, 1.0)}, {"a": Damage(1, 1.0, 1.0)}]
    assert measured_damage.added_up(shares) == {"a": Damage(3, 4.0, 6.0), "b": Damage(1, 1.0, 1.0)}
