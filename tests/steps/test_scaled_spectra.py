"""Layers are compared by the damage that is measured of their cuts, where that helps."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

import pelacli
from pelacli.factorize import measured_damage
from pelacli.measure.held_back import Distance
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget
from pelacli.ranks.spectrum import Spectrum
from pelacli.steps import scaled_spectra


class Encoder(nn.Module):
    """Two blocks, of which one acts on tokens before their mean, the other one on the mean."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.token, self.pooled = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x):
        return self.pooled(torch.tanh(self.token(x)).mean(1))


def batches():
    """Texts whose tokens have most in common."""
    torch.manual_seed(1)
    x = torch.randn(288, 1, 24) + 0.3 * torch.randn(288, 12, 24)
    return list(x.split(32))


def ranks_and_error(ratio=0.5):
    model = Encoder()
    dense = Encoder()
    plan = pelacli.decompose(
        model, ratio=ratio, scope="layers", multiple=1, form="factors", batches=batches(),
        correct=False,
    )  # fmt: skip
    torch.manual_seed(2)
    x = torch.randn(500, 1, 24) + 0.3 * torch.randn(500, 12, 24)
    with torch.no_grad():
        error = (model(x) - dense(x)).square().sum() / (dense(x) - dense(x).mean(0)).square().sum()
    return plan.ranks(), float(error)


def test_an_encoder_is_nearer_to_the_dense_one_when_its_cuts_are_measured(monkeypatch):
    ranks, error = ranks_and_error()
    monkeypatch.setattr(measured_damage, "scales", lambda *_: {})
    others, other_error = ranks_and_error()
    assert ranks["token"] > others["token"]
    assert error < 0.95 * other_error


def test_scales_that_held_back_samples_are_against_are_not_taken(monkeypatch):
    monkeypatch.setattr(measured_damage, "scales", lambda *_: {"token": 1.0, "pooled": 1.0})
    wanted = ranks_and_error()
    monkeypatch.setattr(measured_damage, "scales", lambda *_: {"token": 1e-6, "pooled": 1.0})
    assert ranks_and_error() == wanted


def test_without_held_back_samples_nothing_is_measured(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(measured_damage, "measure", never)
    model = Encoder()
    pelacli.decompose(model, ratio=0.5, scope="layers", batches=batches()[:1][0][:4].split(1))


def spectra(first, second):
    fall = torch.arange(16, 0, -1).double().numpy()
    return [Spectrum("a", (16, 16), first * fall), Spectrum("b", (16, 16), second * fall)]


@pytest.mark.parametrize(
    ("error", "wanted"),
    [(0.1, True), (0.2, False), (0.3, False), (math.nan, False)],
)
def test_the_plan_for_half_of_the_parameters_decides(error, wanted):
    before, after = spectra(1.0, 1.0), spectra(1.0, 5.0)
    half = Budget("energy", Fraction(1, 2), scope="layers", multiple=1)
    found = {
        str(planner.plan(before, half).ranks()): 0.2,
        str(planner.plan(after, half).ranks()): error,
    }
    assert len(found) == 2

    def one_shot(plan):
        return Distance(8, found[str(plan.ranks())])

    assert scaled_spectra.helps(before, after, one_shot) is wanted


def test_where_half_of_the_parameters_is_no_rank_layers_stay_as_they_are():
    tiny = [Spectrum("a", (2, 2), torch.tensor([2.0, 1.0]).double().numpy())]
    assert scaled_spectra.helps(tiny, tiny, lambda plan: Distance(8, 0.0)) is False
