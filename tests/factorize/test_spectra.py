"""Spectra and factors against torch.linalg, plain and in the two-sided metric."""

from __future__ import annotations

import pytest
import torch

from pelacli.factorize import spectra, symmetric
from pelacli.factorize.factors import absorb_mean, decompose
from pelacli.factorize.moments import Moments

SHAPES = [(40, 24), (24, 40), (32, 32), (7, 1), (1, 7), (96, 384)]


def matrix(shape, kind="random"):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    n = min(shape)
    if kind == "steep":
        U, _, V = torch.linalg.svd(weight, full_matrices=False)
        weight = U * torch.logspace(0, -4, n) @ V
    if kind == "deficient":
        weight = torch.randn(shape[0], max(1, n // 3)) @ torch.randn(max(1, n // 3), shape[1])
    return weight


@pytest.mark.parametrize("kind", ["random", "steep", "deficient"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_plain_is_the_truncated_svd(shape, kind):
    """The excess over the optimal error is at most 1e-6 of the weight's energy."""
    weight = matrix(shape, kind)
    exact = torch.linalg.svdvals(weight.double())
    cut = decompose(weight)
    total = exact.square().sum()
    assert torch.allclose(cut.energies, exact.square(), atol=float(1e-6 * total))
    n = min(shape)
    for rank in {0, 1, n // 4, n // 2, n - 1, n}:
        down, up = cut.factors(rank)
        assert (down.shape, up.shape) == ((rank, shape[1]), (shape[0], rank))
        error = (weight.double() - up.double() @ down.double()).square().sum()
        optimum = exact[rank:].square().sum()
        assert error - optimum <= 1e-6 * total


def test_norms_are_split_evenly_as_in_the_paper():
    weight = matrix((40, 24))
    U, S, V = torch.linalg.svd(weight, full_matrices=False)
    down, up = decompose(weight).factors(5)
    assert torch.allclose(down.norm(dim=1), S[:5].sqrt(), rtol=1e-4)
    assert torch.allclose(up.norm(dim=0), S[:5].sqrt(), rtol=1e-4)
    signs = (down * V[:5]).sum(1).sign()
    assert torch.allclose(down, signs[:, None] * S[:5].sqrt()[:, None] * V[:5], atol=1e-3)
    assert torch.allclose(up, signs * S[:5].sqrt() * U[:, :5], atol=1e-3)


def root(moment):
    values, vectors = torch.linalg.eigh(moment)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def moments_of(weight, C, G, mean=None):
    """Moments as a calibration would give them: the wide side seen through the weight."""
    W = weight.double()
    out, in_ = W.shape
    levels = float(C.diagonal().mean()), float(G.diagonal().mean())
    if in_ < out:
        return Moments(mean, C, W.T @ G @ W, *levels)
    return Moments(mean, G, W @ C @ W.T, *levels[::-1])


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (16, 16)], ids=str)
def test_two_sided_is_optimal_in_its_metric(shape, monkeypatch):
    """Energies are the squared singular values of G^½ W C^½, and no rank-r matrix does better."""
    monkeypatch.setattr(spectra, "DAMP_INPUT", 1e-12)
    monkeypatch.setattr(spectra, "DAMP_OUTPUT", 1e-12)
    monkeypatch.setattr(symmetric, "_STRIP", 7)  # several, and a rest
    weight = matrix(shape)
    out, in_ = shape
    C, G = (torch.cov(torch.randn(n, 200, dtype=torch.float64) ** 3) for n in (in_, out))
    values = torch.linalg.svdvals(root(G) @ weight.double() @ root(C))
    cut = decompose(weight, moments_of(weight, C, G))
    assert torch.allclose(cut.energies, values.square(), rtol=1e-6)
    for rank in (1, 5, 12):
        down, up = cut.factors(rank)
        damage = root(G) @ (weight.double() - up @ down) @ root(C)
        assert damage.square().sum() == pytest.approx(float(values[rank:].square().sum()), rel=1e-6)
        assert torch.allclose(down.norm(dim=1), up.norm(dim=0))


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)], ids=str)
def test_singular_moments_survive(shape):
    weight = matrix(shape)
    out, in_ = shape
    few = torch.randn(in_, 3, dtype=torch.float64)
    for C, G in (
        (few @ few.T, torch.eye(out, dtype=torch.float64)),
        (torch.zeros(in_, in_, dtype=torch.float64), torch.zeros(out, out, dtype=torch.float64)),
    ):
        down, up = decompose(weight, moments_of(weight, C, G)).factors(min(shape))
        assert torch.isfinite(down).all()
        assert torch.isfinite(up).all()
        product = up @ down
        # what the samples show is kept exactly, at full rank all of the weight
        assert torch.allclose(product @ C, weight.double() @ C, atol=1e-5 * float(C.norm() + 1))


def test_the_bias_takes_up_the_mean():
    weight, bias, mean = matrix((12, 8)), torch.randn(12), torch.randn(8)
    down, up = decompose(weight).factors(3)
    moved = absorb_mean(weight, bias, down, up, mean)
    assert torch.allclose(up @ (down @ mean) + moved, weight @ mean + bias, atol=1e-5)
    assert absorb_mean(weight, None, down, up, mean) is None
    assert absorb_mean(weight, bias, down, up, None) is bias


def test_only_matrices():
    with pytest.raises(ValueError, match="matrix"):
        decompose(torch.ones(2, 3, 4))


@pytest.mark.parametrize("shape", [(96, 384), (384, 96), (128, 128)], ids=str)
def test_plain_error_is_the_optimums_below_break_even(shape):
    """Relative to the optimal error itself, at every rank that a plan may choose."""
    weight = matrix(shape)
    exact = torch.linalg.svdvals(weight.double()).square()
    cut = decompose(weight)
    for rank in range(0, shape[0] * shape[1] // sum(shape) + 1, 8):
        down, up = cut.factors(rank)
        error = (weight.double() - up.double() @ down.double()).square().sum()
        assert error <= (1 + 1e-6) * exact[rank:].sum()


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)], ids=str)
def test_one_sided_metrics(shape):
    """Without one of the moments that side counts as it is."""
    weight = matrix(shape).double()
    out, in_ = shape
    C = torch.cov(torch.randn(in_, 200, dtype=torch.float64))
    one = torch.eye(out, dtype=torch.float64)
    level = float(C.diagonal().mean())
    if in_ < out:
        moments = Moments(None, C, None, level, 1.0)
    else:
        moments = Moments(None, None, weight @ C @ weight.T, 1.0, level)
    cut = decompose(weight.float(), moments)
    damped = C + spectra.DAMP_INPUT * level * torch.eye(in_, dtype=torch.float64)
    values = torch.linalg.svdvals(root(one) @ weight @ root(damped))
    assert torch.allclose(cut.energies, values.square(), rtol=1e-5)


def test_only_what_is_kept_can_be_cut():
    cut = decompose(matrix((40, 24)), keep=6)
    assert (cut.narrow.shape, cut.wide.shape, len(cut.energies)) == ((6, 24), (40, 6), 24)
    down, up = cut.factors(6)
    whole = decompose(matrix((40, 24))).factors(6)
    assert torch.allclose(up @ down, whole[1] @ whole[0], atol=1e-5)
