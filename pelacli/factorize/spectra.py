"""Weight (and moments) → spectrum, and weight (and moments) → factors.

For a layer with weight W (out × in), input covariance C and second moment G of the gradients at
its output, the damage of putting W′ in the place of W is to second order
‖G^½ (W − W′) C^½‖²_F. The best W′ of rank r is the truncated SVD of G^½ W C^½, mapped back.

Only the narrower side n = min(out, in) is ever decomposed. For in < out, with C = L Lᵀ, the
singular values of G^½ W L are those of G^½ W C^½, and their squares are the eigenvalues of the
n × n matrix A = Lᵀ (Wᵀ G W) L. So the wide side's moment is needed only as seen through the
weight, Wᵀ G W, which is n × n too. With A = V Λ Vᵀ: W′ = (W L V_r)(V_rᵀ L⁻¹). For in ≥ out the
same holds for Wᵀ with G and C changing places. Without moments C = G = 1 and W′ is the plain
truncated SVD.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pelacli.factorize.moments import Moments, narrow_in
from pelacli.factorize.symmetric import between, gram, mirrored, root, safe_scale
from pelacli.system import malloc, threads

# Shares of the mean diagonal added to the moments so that directions that the samples never
# showed keep a little weight. Values that worked on DINOv2 and MiniLM
# (docs/log/calibration-and-refit.md).
DAMP_INPUT = 1e-4
DAMP_OUTPUT = 1e-2

# Float32 does where more than this share of the energy lies past break-even: with less the excess
# reached 1e-5 of the optimal error, with more 3e-7 (docs/log/speed-and-memory.md).
_STEEP = 1e-2
# Width below which one thread solves a calibrated layer where memory counts. A second is worth 1.7
# times the speed, but its buffers are as large as half the matrix or more
# (docs/log/speed-and-memory.md).
_ALONE = 1536


@torch.no_grad()
def solve(
    weight: Tensor, moments: Moments | None = None, *, keep: int | None = None
) -> tuple[Tensor, Tensor]:
    """(energies [n], the metric's leading eigenvectors [keep, n] in rows, the leading one last).

    The vectors are what costs time in a decomposition, and the smallest part of it: with them
    `cut` only multiplies. Arguments and errors as for `decompose`, and in less memory.
    """
    values, rows = eigen(weight, moments, lean=True)
    return descending(values), rows[max(0, len(rows) - (len(rows) if keep is None else keep)) :]


def workspace(shape: tuple[int, int], calibrated: bool) -> int:
    """Bytes that a layer takes while it is solved."""
    square = min(shape) ** 2
    # The matrix that becomes the vectors, and LAPACK's two more, in float32; in float64 (by as
    # much as measured) with the products that lead to it.
    return 4 * square * (8 if calibrated else 3)


def precision(moments: Moments | None) -> torch.dtype:
    return torch.float32 if moments is None else torch.float64


def descending(values: Tensor) -> Tensor:
    return values.flip(0).double().clamp_min(0.0)


def eigen(
    weight: Tensor,
    moments: Moments | None,
    dtype: torch.dtype | None = None,
    *,
    lean: bool = False,
) -> tuple[Tensor, Tensor]:
    """(eigenvalues [n] ascending, eigenvectors [n, n] in rows) of the metric."""
    if moments is None:
        return _plain_eigen(weight, dtype)
    metric = _metric(weight, moments, dtype or precision(moments))
    malloc.trim()
    with threads.limited(1 if lean and len(metric) < _ALONE else None):
        return _solve(metric)


def _plain_eigen(weight: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """`eigen` of the weight's own Gram matrix."""
    if weight.ndim != 2:
        raise ValueError(f"a layer's weight is a matrix, not of shape {tuple(weight.shape)}")
    out, in_ = weight.shape
    narrow = weight if narrow_in((out, in_)) else weight.T
    scale = safe_scale(weight)
    # Beside numbers that need a scale, others become so small that LAPACK gives up in float32.
    first = dtype or (torch.float32 if scale == 1 else torch.float64)
    values, rows = _solve(gram(narrow, first, scale))
    if dtype is None and first != torch.float64:
        dropped = values[: len(values) - out * in_ // (out + in_)].clamp_min(0.0).sum()
        # Next to the large eigenvalues float32 can't see the small ones. Where little is dropped
        # even at break-even, that would show in it.
        if dropped < _STEEP * values.sum():
            del rows
            values, rows = _solve(gram(narrow, torch.float64, scale))
    return values if scale == 1 else values.double() / scale**2, rows


def _metric(weight: Tensor, moments: Moments, dtype: torch.dtype) -> Tensor:
    """The n × n matrix A whose eigenvalues are the energies.

    Only the lower triangle counts: the eigen-solver reads no more.
    """
    if weight.ndim != 2:
        raise ValueError(f"a layer's weight is a matrix, not of shape {tuple(weight.shape)}")
    inputs = narrow_in((weight.shape[0], weight.shape[1]))
    A = gram(weight if inputs else weight.T, dtype)
    malloc.trim()  # what a product took is room for the next step
    mirrored(A)  # the products below need the other half too
    if moments.far is not None:
        damp = DAMP_OUTPUT if inputs else DAMP_INPUT
        A.mul_(damp * moments.far_level).add_(moments.far.to(A))
    L = near_root(weight, moments, dtype)
    if L is not None:
        between(A, L)
    return A


def near_root(weight: Tensor, moments: Moments, dtype: torch.dtype) -> Tensor | None:
    if moments.near is None:
        return None
    damp = DAMP_INPUT if narrow_in((weight.shape[0], weight.shape[1])) else DAMP_OUTPUT
    return root(moments.near.to(weight.device, dtype), damp * moments.near_level)


def _solve(A: Tensor) -> tuple[Tensor, Tensor]:
    """(eigenvalues [n] ascending, eigenvectors [n, n] in rows) of the lower triangle.

    The vectors take A's place: the solver works in the memory that it gives its result in, and
    A's transpose is laid out as LAPACK wants it, so nothing is copied.
    """
    if A.device.type != "cpu":
        values, vectors = torch.linalg.eigh(A)
        return values, vectors.T
    values = A.new_empty(len(A))
    torch.linalg.eigh(A.T, UPLO="U", out=(values, A.T))
    return values, A
