"""Products and roots of symmetric matrices in half the work and in little memory.

Of a symmetric matrix the lower triangle counts, as the solvers read no more. What is made is made
strip by strip, where it is to lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# Columns of a Gram matrix that are made at a time: the fastest of 64 to 384 at 768 and 1024.
_STRIP = 192
# Rows of a weight that are converted at a time.
_SLAB = 256


# What stands for a moment of zeros: little beside any other, and its root's inverse is no overflow.
_NOTHING = 1e-30
# Between these sizes the squares of numbers, and sums of them, are well within float32.
_SMALL, _LARGE = 2.0**-40, 2.0**40
# The largest power of two in float32 is 2¹²⁷. Subnormal numbers, down to 2⁻¹⁴⁹, are raised so far
# that their squares are no more subnormal.
_MOST_RAISED = 126


def safe_scale(*tensors: Tensor) -> float:
    """A power of two by which tensors can be multiplied so that their squares are finite and not
    zero in float32. It is 1 for all but the strangest numbers, and exact for those."""
    ends = [torch.aminmax(t.detach()) for t in tensors if t.numel()]  # abs() would be a copy
    largest = max((max(-float(end.min), float(end.max)) for end in ends), default=0.0)
    if _SMALL < largest < _LARGE or largest == 0 or not math.isfinite(largest):
        return 1.0
    return math.ldexp(1.0, min(-math.frexp(largest)[1], _MOST_RAISED))


def scaled(t: Tensor, scale: float) -> Tensor:
    """The tensor times a scale; without a copy where that is 1."""
    return t if scale == 1 else t * scale


def gram(W: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """scale² WᵀW [n, n], the upper triangle for the most part left out."""
    A = torch.zeros(W.shape[1], W.shape[1], dtype=dtype, device=W.device)
    for rows in _slabs(W, dtype):
        rows = scaled(rows, scale)
        add_gram(A, rows, rows)
    return A


def add_gram(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add aᵀb [n, n] to ``total``, where it is symmetric, in 6/10 of a product's work.

    Of the upper triangle only a part is right afterwards: the lower one counts; see `mirrored`.

    Args:
        a, b: [tokens, n].
    """
    for i in range(0, len(total), _STRIP):
        j = i + _STRIP
        total[i:j, :j].addmm_(a[:, i:j].T, b[:, :j])


def mirrored(total: Tensor) -> Tensor:
    """The symmetric matrix of which `add_gram` made the lower triangle, in place."""
    for i in range(_STRIP, len(total), _STRIP):
        total[:i, i : i + _STRIP] = total[i : i + _STRIP, :i].T
    return total


def between(A: Tensor, L: Tensor) -> None:
    """Lᵀ A L in A's place, of which the lower triangle counts. L is lower-triangular.

    Strip by strip, as each strip of the products needs nothing that was written over before: no
    other matrix of A's size is made, and what L's zeros and the symmetry save is not multiplied.
    """
    starts = range(0, len(A), _STRIP)
    for i in starts:
        j = i + _STRIP
        A[i:j] = L[i:, i:j].T @ A[i:]
    for i in starts:
        j = i + _STRIP
        A[i:, i:j] = A[i:, i:] @ L[i:, i:j]


def root(moment: Tensor, damping: float) -> Tensor:
    """A lower-triangular L with L Lᵀ = moment + damping·1, also for singular moments."""
    damping = max(damping, torch.finfo(moment.dtype).tiny ** 0.5)
    if not moment.any():  # a layer whose gradient never flows, or whose inputs never change
        damping = max(damping, _NOTHING)
    for _ in range(8):  # rounding can make a singular moment slightly indefinite
        damped = moment.clone()
        damped.diagonal().add_(damping)
        # It is symmetric: its transpose is laid out as LAPACK wants it, so nothing is copied.
        info = torch.empty((), dtype=torch.int32, device=moment.device)
        torch.linalg.cholesky_ex(damped.T, out=(damped.T, info))
        if not info.any():
            return damped.T
        damping *= 10
    values, vectors = torch.linalg.eigh(moment)
    half = vectors * values.clamp_min(damping).sqrt()
    # Any root will do; the QR of half's transpose gives the triangular one.
    upper: Tensor = torch.linalg.qr(half.T).R
    return upper.T


def times(W: Tensor, B: Tensor, out: Tensor | None = None) -> Tensor:
    """W B in B's precision: [m, n] and [n, k] → [m, k], into ``out`` if given."""
    if out is None:
        out = B.new_empty(len(W), B.shape[1])
    start = 0
    for rows in _slabs(W, B.dtype):
        part = out[start : start + len(rows)]
        if out.dtype == B.dtype:
            torch.mm(rows, B, out=part)
        else:
            part.copy_(rows @ B)
        start += len(rows)
    return out


def _slabs(W: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """W's rows in another precision, some at a time, so that no whole copy is ever made."""
    step = max(1, len(W)) if W.dtype == dtype else _SLAB
    for i in range(0, len(W), step):
        yield W[i : i + step].to(dtype)
