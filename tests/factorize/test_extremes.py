"""Weights and samples of any size, and layers of zeros, give finite factors that are as good."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pelacli
from pelacli.factorize import spectra


class Net(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.a, self.b = nn.Linear(16, 24, bias=bias), nn.Linear(24, 16, bias=bias)

    def forward(self, x):
        return self.b(self.a(x)).mean(1)


def error(net, x, calibrated=True):
    """Relative error of the outputs of the net, cut to 0.7 of its layers."""
    # By the weights alone the larger layer gets all that there is, and what pivots save with it.
    how = {"batches": x} if calibrated else {"form": "factors"}
    with torch.no_grad():
        y = net(x).double()
        pelacli.decompose(net, ratio=0.7, scope="layers", **how)
        z = net(x).double()
    assert z.isfinite().all()
    return float((y - z).norm() / y.norm().clamp_min(1e-300))


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(40, 5, 16)


def net(bias):
    torch.manual_seed(0)
    return Net(bias)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("size", [1e-18, 1e18])
@pytest.mark.parametrize("layer", ["a", "b"])
def test_weights_of_any_size_are_cut_as_well(calibrated, size, layer, x):
    large = net(False)
    large.get_submodule(layer).weight.data.mul_(size)
    got, expected = error(large, x, calibrated), error(net(False), x, calibrated)
    assert got == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20])
def test_with_biases_samples_of_any_size_give_finite_outputs(size, x):
    assert error(net(True), size * x) < 1


@pytest.mark.parametrize("size", [1e-18, 1e18])
def test_samples_of_any_size_do_as_well(size, x):
    assert error(net(False), size * x) == pytest.approx(error(net(False), x), rel=0.2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("zeros", [("a",), ("b",), ("a", "b")])
def test_layers_of_zeros_are_cut_to_layers_of_zeros(bias, zeros, x):
    some = net(bias)
    for name in zeros:
        some.get_submodule(name).weight.data.zero_()
    assert error(some, x) < 1e-5


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_samples_that_are_all_alike_leave_the_output_as_it_was(value, x):
    assert error(net(True), torch.full_like(x, value)) < 1e-3


def test_the_largest_numbers_beside_usual_ones_are_no_obstacle():
    """LAPACK gave up over the usual ones, which are next to nothing then."""
    torch.manual_seed(0)
    weight = 0.02 * torch.randn(48, 16)
    largest = weight[3, 4:8] = torch.finfo(torch.float32).max
    values, rows = spectra.eigen(weight, None)
    assert values[-1].item() == pytest.approx(4 * largest**2)
    assert rows.isfinite().all()
