"""From times of single layers to those of a model, and what a plan by them does."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from pelacli.errors import InfeasibleError
from pelacli.lowrank import find
from pelacli.measure import flops, model_times
from pelacli.measure.layer_times import Case, LayerTimes
from pelacli.measure.model_times import ModelTimes
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget
from pelacli.ranks.prices import LatencyTable
from pelacli.ranks.size import ModelSize
from pelacli.ranks.spectrum import Spectrum
from pelacli.report.latencies import Conditions

CPU = Conditions("cpu", "Some CPU", 1, "fp32", False)


class Net(nn.Module):
    """One layer that is applied twice in a pass, one once, one never."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(64, 64)
        self.once = nn.Linear(64, 32, bias=False)
        self.never = nn.Linear(64, 64)

    def forward(self, x):
        return self.once(self.twice(self.twice(x)))


@pytest.fixture
def counted():
    """(layers by name, cost of one sample of five positions)."""
    net = Net()
    layers = find.find_layers(net)
    cost = flops.count(net, layers, lambda m: m(torch.zeros(1, 5, 64)))
    return {layer.name: layer for layer in layers}, cost


def test_a_case_is_one_call_on_the_whole_batch(counted):
    layers, cost = counted
    assert model_times.case_of(layers["twice"], cost, 8) == Case(64, 64, True, 40)
    assert model_times.case_of(layers["once"], cost, 8) == Case(32, 64, False, 40)
    assert model_times.case_of(layers["never"], cost, 8) is None


def test_a_layer_costs_what_all_its_calls_do(counted):
    layers, cost = counted
    known = {
        Case(64, 64, True, 40): LayerTimes(100, {"factors": {8: 10, 16: 20, 24: 30}}),
        Case(32, 64, False, 40): LayerTimes(50, {"factors": {8: 10, 16: 20}}),
    }
    tables = model_times.tables(list(layers.values()), cost, 8, known, "cpu")
    assert (tables["twice"].dense, tables["once"].dense, tables["never"].dense) == (200, 50, 0)
    assert tables["twice"].ranks["factors"][[8, 16, 24]].tolist() == [20, 40, 60]
    assert tables["once"].ranks["factors"].shape == (33,)
    assert not tables["never"].ranks["factors"].any()


def times(dense=1000, **tables):
    """Of square layers of 16: name → (dense, time of a rank)."""
    return ModelTimes(
        CPU,
        8,
        dense,
        {
            name: LatencyTable(whole, {"factors": rank * np.arange(17, dtype=np.int64)})
            for name, (whole, rank) in tables.items()
        },
    )


def spectrum(name):
    return Spectrum(name, (16, 16), np.linspace(16, 1, 16), 1.0)


def test_the_fixed_part_is_what_the_layers_leave_and_not_below_nothing():
    assert times(a=(300, 10), b=(200, 10)).fixed == 500
    assert times(dense=400, a=(300, 10), b=(200, 10)).fixed == 0


def plan(known, ratio):
    spectra = [spectrum(name) for name in known.tables]
    size = ModelSize(fixed_latency=known.fixed)
    budget = Budget(ratio=Fraction(ratio), unit="latency", multiple=1)
    return planner.plan(spectra, budget, size, known.tables), spectra


def test_a_layer_that_is_not_faster_stays_dense():
    known = times(fast=(400, 25), slow=(400, 500))
    made, spectra = plan(known, "0.8")
    assert made.layers["slow"].rank is None
    assert made.layers["slow"].reason == "no rank is faster than dense"
    assert made.layers["fast"].rank == 8  # 200 + 400 + 25 · 8 ≤ 0.8 · 1000
    assert known.predicted(made, spectra) == 800


def test_a_ratio_that_can_not_be_had_names_the_layers_that_are_not_faster():
    known = times(fast=(400, 25), slow=(400, 500))
    with pytest.raises(InfeasibleError) as error:
        plan(known, "0.3")
    assert str(error.value) == (
        "ratio 0.3 cannot be met: the smallest possible is 0.625, because 20.0 % of the time is "
        "not in factorised layers, layers that no rank makes faster hold 40.0 % and the layers at "
        "their lowest ranks hold 2.5 %"
    )


def test_the_prediction_is_of_the_whole_model_whatever_the_budget_counts():
    known = times(a=(400, 25), b=(400, 25))
    made, spectra = plan(known, "0.7")
    of_layers = replace(made, scope="layers")
    assert known.predicted(made, spectra) == known.predicted(of_layers, spectra) == 700
    assert made.used == 700
