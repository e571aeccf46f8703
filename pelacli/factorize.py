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

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pelacli import heap, parallel
from pelacli.products import between, gram, mirrored, root, times

# Shares of the mean diagonal added to the moments so that directions that the samples never
# showed keep a little weight. Values that worked on DINOv2 and MiniLM (docs/log.md).
DAMP_INPUT = 1e-4
DAMP_OUTPUT = 1e-2

# Float32 does where more than this share of the energy lies past break-even: with less the excess
# reached 1e-5 of the optimal error, with more 3e-7 (docs/log.md).
_STEEP = 1e-2
# Width below which one thread solves a calibrated layer where memory counts. A second is worth 1.7
# times the speed, but its buffers are as large as half the matrix or more (docs/log.md).
_ALONE = 1536


@dataclass
class Moments:
    """What a layer's inputs and output-gradients are like. n = min(out, in).

    Attributes:
        mean: mean input, [in].
        near: second moment on the narrower side, [n, n]: the covariance C of the inputs (per
            token) where in < out, else G, the summed gradient moment per sample. None: identity.
        far: the wider side's second moment seen through the weight, [n, n]: Wᵀ G W where
            in < out, else W C Wᵀ. None: identity seen through the weight.
        near_level, far_level: mean diagonal of the two moments on their own side (for damping).
        tokens: positions per sample.
        weights: how strongly each token is felt, by which ``mean`` and the inputs' moment weigh
            it: number of the batch → [tokens], 1 on average. Empty: all alike.
    """

    mean: Tensor | None = None
    near: Tensor | None = None
    far: Tensor | None = None
    near_level: float = 1.0
    far_level: float = 1.0
    tokens: float = 1.0
    weights: Mapping[int, Tensor] = field(default_factory=dict)


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
    store = store or dtype or _precision(moments)
    values, rows = _eigen(weight, moments, dtype)
    rows = rows[max(0, len(rows) - (len(rows) if keep is None else keep)) :].flip(0)
    L = None if moments is None else _near_root(weight, moments, rows.dtype)
    return Decomposition(_descending(values), *_mapped_back(weight, rows, L, store))


@torch.no_grad()
def solve(
    weight: Tensor, moments: Moments | None = None, *, keep: int | None = None
) -> tuple[Tensor, Tensor]:
    """(energies [n], the metric's leading eigenvectors [keep, n] in rows, the leading one last).

    The vectors are what costs time in a decomposition, and the smallest part of it: with them
    `cut` only multiplies. Arguments and errors as for `decompose`, and in less memory.
    """
    values, rows = _eigen(weight, moments, lean=True)
    return _descending(values), rows[max(0, len(rows) - (len(rows) if keep is None else keep)) :]


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
    dtype = _precision(moments)
    if vectors is None:
        vectors = solve(weight, moments, keep=rank)[1]
    L = None if moments is None else _near_root(weight, moments, dtype)
    rows = vectors.to(weight.device, dtype).flip(0)
    narrow, wide, transposed = _mapped_back(weight, rows, L, store or dtype)
    scale = _balance(narrow, wide)
    narrow, wide = narrow.mul_(scale[:, None]), wide.div_(scale)
    return (wide.T, narrow.T) if transposed else (narrow, wide)


def workspace(shape: tuple[int, int], calibrated: bool) -> int:
    """Bytes that a layer takes while it is solved."""
    square = min(shape) ** 2
    # The matrix that becomes the vectors, and LAPACK's two more, in float32; in float64 (by as
    # much as measured) with the products that lead to it.
    return 4 * square * (8 if calibrated else 3)


def absorb_mean(
    weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, mean: Tensor | None
) -> Tensor | None:
    """The bias [out] that takes up the mean of the error: b′ = b + (W − W′) μ."""
    if bias is None or mean is None:
        return bias
    mu = mean.double()[:, None]
    error = times(weight, mu) - times(up, times(down, mu))
    return (bias.double() + error[:, 0]).to(bias.dtype)


def narrow_in(shape: tuple[int, int]) -> bool:
    """Whether a layer of this shape (out, in) is decomposed on its input side.

    A square one is not: layers that write into a residual stream are square as a rule, and to
    correct those the gradients' moment G is needed itself and not only as Wᵀ G W.
    """
    return shape[1] < shape[0]


def _precision(moments: Moments | None) -> torch.dtype:
    return torch.float32 if moments is None else torch.float64


def _descending(values: Tensor) -> Tensor:
    return values.flip(0).double().clamp_min(0.0)


def _balance(narrow: Tensor, wide: Tensor) -> Tensor:
    """What to multiply narrow's rows by, and divide wide's columns by, to equal norms, [r]."""
    tiny = torch.finfo(narrow.dtype).tiny
    scale: Tensor = wide.norm(dim=0).clamp_min(tiny) / narrow.norm(dim=1).clamp_min(tiny)
    return scale.sqrt()


def _eigen(
    weight: Tensor,
    moments: Moments | None,
    dtype: torch.dtype | None = None,
    *,
    lean: bool = False,
) -> tuple[Tensor, Tensor]:
    """(eigenvalues [n] ascending, eigenvectors [n, n] in rows) of the metric."""
    metric = _metric(weight, moments, dtype or _precision(moments))
    if moments is not None:
        heap.trim()
        with parallel.threads(1 if lean and len(metric) < _ALONE else None):
            return _solve(metric)
    values, rows = _solve(metric)
    del metric
    if dtype is None:
        out, in_ = weight.shape
        dropped = values[: len(values) - out * in_ // (out + in_)].clamp_min(0.0).sum()
        # Next to the large eigenvalues float32 can't see the small ones. Where little is dropped
        # even at break-even, that would show in it.
        if dropped < _STEEP * values.sum():
            del rows
            values, rows = _solve(_metric(weight, None, torch.float64))
    return values, rows


def _metric(weight: Tensor, moments: Moments | None, dtype: torch.dtype) -> Tensor:
    """The n × n matrix A whose eigenvalues are the energies.

    Only the lower triangle counts: the eigen-solver reads no more.
    """
    if weight.ndim != 2:
        raise ValueError(f"a layer's weight is a matrix, not of shape {tuple(weight.shape)}")
    inputs = narrow_in((weight.shape[0], weight.shape[1]))
    A = gram(weight if inputs else weight.T, dtype)
    if moments is None:
        return A
    heap.trim()  # what a product took is room for the next step
    mirrored(A)  # the products below need the other half too
    if moments.far is not None:
        damp = DAMP_OUTPUT if inputs else DAMP_INPUT
        A.mul_(damp * moments.far_level).add_(moments.far.to(A))
    L = _near_root(weight, moments, dtype)
    if L is not None:
        between(A, L)
    return A


def _near_root(weight: Tensor, moments: Moments, dtype: torch.dtype) -> Tensor | None:
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


def _mapped_back(
    weight: Tensor, rows: Tensor, L: Tensor | None, store: torch.dtype
) -> tuple[Tensor, Tensor, bool]:
    """(narrow [k, n], wide [m, k], transposed) of leading eigenvectors [k, n] in rows."""
    inner = rows.T
    if L is not None:
        rows = torch.linalg.solve_triangular(L, rows, upper=False, left=False)
        inner = L @ inner
    m, k = max(weight.shape), len(rows)
    if narrow_in((weight.shape[0], weight.shape[1])):
        wide = weight.new_empty(m, k, dtype=store)
        return rows.to(store), times(weight, inner, out=wide), False
    wide = weight.new_empty(k, m, dtype=store).T  # in the order in which `down` lies in memory
    return rows.to(store), times(weight.T, inner, out=wide), True
