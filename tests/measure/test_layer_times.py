"""Times of single layers, on a clock that the layers move, and what is made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pelacli.lowrank.linear import LowRankLinear
from pelacli.measure import layer_times
from pelacli.measure.layer_times import Case

CASE = Case(96, 64, True, 10)
CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that a dense layer moves by 1 ms, and one of rank r by (10 + r) µs."""
    now = [0.0]

    def layer(seconds):
        made = nn.Linear(64, 96, device="meta")
        made.register_forward_hook(lambda *_: now.__setitem__(0, now[0] + seconds))
        return made

    monkeypatch.setattr(layer_times, "_dense", lambda case, rank: layer(1e-3))
    forms = {"factors": lambda case, rank: layer((10 + rank) * 1e-6)}
    monkeypatch.setattr(layer_times, "FORMS", forms | {"other": lambda case, rank: layer(2e-6)})
    monkeypatch.setattr(layer_times, "_SECONDS", 0)
    return lambda: now[0]


def test_each_rank_is_timed_beside_the_dense_layer(clock):
    times = layer_times.measure(CASE, ["factors", "other"], CPU, torch.float32, clock=clock)
    assert times.dense == 1_000_000
    ranks = layer_times.ranks_to_time(CASE, "factors")
    assert times.forms["factors"] == {rank: 1000 * (10 + rank) for rank in ranks}
    assert set(times.forms["other"].values()) == {2000}


def test_every_form_makes_a_layer_of_the_case():
    for form, make in layer_times.FORMS.items():
        layer = make(CASE, 8)
        assert (layer.in_features, layer.out_features, layer.rank) == (64, 96, 8), form
        assert layer.bias is not None
    assert isinstance(layer_times.FORMS["factors"](CASE, 8), LowRankLinear)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layers_that_are_timed_have_finite_weights_of_the_type(dtype, monkeypatch):
    outputs = []
    call = layer_times._Stack.__call__

    def watched(self, x):
        outputs.extend(layer(x) for layer in self.layers)
        call(self, x)

    monkeypatch.setattr(layer_times._Stack, "__call__", watched)
    monkeypatch.setattr(layer_times, "_SECONDS", 0)
    layer_times.measure(CASE, list(layer_times.FORMS), CPU, dtype)
    assert {output.dtype for output in outputs} == {dtype}
    assert {output.shape for output in outputs} == {torch.Size((10, 96))}
    assert all(output.isfinite().all() and output.std() > 0 for output in outputs)


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from(["factors", "pivots"]))
def test_some_ten_ranks_are_timed_up_to_where_low_rank_is_as_large_as_dense(out, in_, form):
    ranks = layer_times.ranks_to_time(Case(out, in_, True, 1), form)
    assert ranks == sorted(set(ranks))
    assert len(ranks) <= 13
    last = out * in_ // (out + in_) if form == "factors" else min(out, in_) - 1
    if last < 1:
        assert not ranks
        return
    assert 1 <= ranks[0] <= ranks[-1] <= last
    if last >= 100:
        assert len(ranks) >= 6
        assert all(rank % 8 == 0 for rank in ranks)
        assert ranks[-1] > 0.85 * last


def test_costs_between_the_timed_ranks_go_in_steps():
    costs = layer_times.costs({16: 100, 32: 200}, 34, step=8)
    assert costs.dtype == np.int64
    some = [0, 1, 16, 17, 24, 25, 32, 33]
    assert costs[some].tolist() == [100, 100, 100, 150, 150, 200, 200, 250]
    assert layer_times.costs({5: 7}, 10, step=1).tolist() == [7] * 10


def test_without_a_step_a_rank_costs_what_the_next_timed_one_does():
    costs = layer_times.costs({16: 100, 32: 200}, 49, step=None)
    assert costs[[0, 16, 17, 25, 32, 40, 48]].tolist() == [100, 100, 200, 200, 200, 250, 300]


def test_noise_is_shared_between_neighbours():
    costs = layer_times.costs({1: 10, 2: 30, 3: 20, 4: 40}, 5, step=1)
    assert costs[1:].tolist() == [10, 25, 25, 40]


@given(
    st.dictionaries(st.integers(1, 64), st.integers(1, 10**9), min_size=1),
    st.sampled_from([1, 8, 16, None]),
)
def test_more_rank_never_costs_less(times, step):
    costs = layer_times.costs(times, 80, step)
    assert (np.diff(costs) >= 0).all()
    assert costs[0] > 0
