"""Weight (and moments) → factors: the leading components, mapped back from the metric."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pelacli.factorize.moments import Moments, narrow_in
from pelacli.factorize.spectra import descending, eigen, near_root, precision, solve
from pelacli.factorize.symmetric import safe_scale, scaled, times


@dataclass
class Decomposition:
    """Spectrum and basis of one layer; `factors` cuts it at any rank.

    Attributes:
        energies: squared singular values, non-increasing, [n], float64.
        narrow, wide: W′ of rank r is wide[:, :r] @ narrow[:r] (transposed where in ≥ out);
            narrow is [k, n], wide [m, k], for the k ≤ n ranks that were kept.
    """

    energies: Tensor
    narrow: Tensor
    wide: Tensor
    transposed: bool

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """(down [r, in], up [out, r]).

        Each component's norm is split evenly between the two sides; for the plain SVD that is
        half of each singular value to each side, as in the paper.
        """
        narrow, wide = self.narrow[:rank], self.wide[:, :rank]
        scale = _balance(narrow, wide)
        narrow, wide = narrow * scale[:, None], wide / scale
        return (wide.T, narrow.T) if self.transposed else (narrow, wide)


@torch.no_grad()
def decompose(
    weight: Tensor,
    moments: Moments | None = None,
    *,
    keep: int | None = None,
    dtype: torch.dtype | None = None,
    store: torch.dtype | None = None,
) -> Decomposition:
    """Spectrum and basis of a layer.

    Args:
        weight: [out, in].
        moments: of the layer; None means the plain SVD of the weight.
        keep: how many components of the basis to keep; all by default.
        dtype: what to compute in. By default float64 with moments, whose products square the
            condition number twice, and for steep plain spectra; else float32. Below break-even
            the excess over the optimal error is then at most 1e-6 of that error itself, above
            it of the weight's energy.
        store: what to keep the basis in; by default ``dtype``, or float32 for all plain spectra.

    Raises:
        ValueError: weight is not a matrix.
    """
    store = store or dtype or precision(moments)
    values, rows = eigen(weight, moments, dtype)
    rows = rows[max(0, len(rows) - (len(rows) if keep is None else keep)) :].flip(0)
    L = None if moments is None else near_root(weight, moments, rows.dtype)
    return Decomposition(descending(values), *_mapped_back(weight, rows, L, store))


@torch.no_grad()
def cut(
    weight: Tensor,
    moments: Moments | None,
    rank: int,
    *,
    vectors: Tensor | None = None,
    store: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(down [r, in], up [out, r]) of one rank, as `Decomposition.factors` gives them.

    Args:
        vectors: the last ``rank`` rows of what `solve` gave; found again by default.
        weight, moments, store: as for `decompose`.
    """
    dtype = precision(moments)
    if vectors is None:
        vectors = solve(weight, moments, keep=rank)[1]
    L = None if moments is None else near_root(weight, moments, dtype)
    rows = vectors.to(weight.device, dtype).flip(0)
    narrow, wide, transposed = _mapped_back(weight, rows, L, store or dtype)
    scale = _balance(narrow, wide)
    narrow, wide = narrow.mul_(scale[:, None]), wide.div_(scale)
    return (wide.T, narrow.T) if transposed else (narrow, wide)


def absorb_mean(
    weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, mean: Tensor | None
) -> Tensor | None:
    """The bias [out] that takes up the mean of the error: b′ = b + (W − W′) μ."""
    if bias is None or mean is None:
        return bias
    mu = mean.double()[:, None]
    error = times(weight, mu) - times(up, times(down, mu))
    return (bias.double() + error[:, 0]).to(bias.dtype)


def _balance(narrow: Tensor, wide: Tensor) -> Tensor:
    """What to multiply narrow's rows by, and divide wide's columns by, to equal norms, [r]."""
    tiny = torch.finfo(narrow.dtype).tiny
    sizes = safe_scale(wide), safe_scale(narrow)
    above = scaled(wide, sizes[0]).norm(dim=0).clamp_min(tiny)
    below = scaled(narrow, sizes[1]).norm(dim=1).clamp_min(tiny)
    scale: Tensor = above / below
    if sizes != (1, 1):
        scale = scale.double() * sizes[1] / sizes[0]
    return scale.sqrt().to(narrow.dtype)


def components(rows: Tensor, L: Tensor | None) -> tuple[Tensor, Tensor]:
    """(rows [k, n], inner [n, k]) of eigenvectors [k, n] in rows, mapped back from the metric.

    Where in < out, W′ is W inner rows, else rowsᵀ innerᵀ W. Of all n vectors, inner rows is 1.

    Args:
        L: root of the narrower side's moment; None: identity.
    """
    inner = rows.T
    if L is None:
        return rows, inner
    return torch.linalg.solve_triangular(L, rows, upper=False, left=False), L @ inner


def _mapped_back(
    weight: Tensor, rows: Tensor, L: Tensor | None, store: torch.dtype
) -> tuple[Tensor, Tensor, bool]:
    """(narrow [k, n], wide [m, k], transposed) of leading eigenvectors [k, n] in rows."""
    rows, inner = components(rows, L)
    m, k = max(weight.shape), len(rows)
    if narrow_in((weight.shape[0], weight.shape[1])):
        wide = weight.new_empty(m, k, dtype=store)
        return rows.to(store), times(weight, inner, out=wide), False
    wide = weight.new_empty(k, m, dtype=store).T  # in the order in which `down` lies in memory
    return rows.to(store), times(weight.T, inner, out=wide), True
