"""Weight (and moments) → spectrum, and weight (and moments) → factors.

For a layer with weight W (out × in), input covariance C and second moment G of the gradients at
its output, the damage of putting W′ in the place of W is to second order
‖G^½ (W − W′) C^½‖²_F. The best W′ of rank r is the truncated SVD of G^½ W C^½, mapped back.

Only the narrower side n = min(out, in) is ever decomposed. For in ≤ out, with C = L Lᵀ, the
singular values of G^½ W L are those of G^½ W C^½, and their squares are the eigenvalues of the
n × n matrix A = Lᵀ (Wᵀ G W) L. So the wide side's moment is needed only as seen through the
weight, Wᵀ G W, which is n × n too. With A = V Λ Vᵀ: W′ = (W L V_r)(V_rᵀ L⁻¹). For in > out the
same holds for Wᵀ with G and C changing places. Without moments C = G = 1 and W′ is the plain
truncated SVD.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Shares of the mean diagonal added to the moments so that directions that the samples never
# showed keep a little weight. Values that worked on DINOv2 and MiniLM (docs/log.md).
DAMP_INPUT = 1e-4
DAMP_OUTPUT = 1e-2


@dataclass
class Moments:
    """What a layer's inputs and output-gradients are like. n = min(out, in).

    Attributes:
        mean: mean input, [in].
        near: second moment on the narrower side, [n, n]: the covariance C of the inputs (per
            token) where in ≤ out, else G, the summed gradient moment per sample. None: identity.
        far: the wider side's second moment seen through the weight, [n, n]: Wᵀ G W where
            in ≤ out, else W C Wᵀ. None: identity seen through the weight.
        near_level, far_level: mean diagonal of the two moments on their own side (for damping).
        tokens: positions per sample.
    """

    mean: Tensor | None = None
    near: Tensor | None = None
    far: Tensor | None = None
    near_level: float = 1.0
    far_level: float = 1.0
    tokens: float = 1.0


@dataclass
class Decomposition:
    """Spectrum and basis of one layer; `factors` cuts it at any rank.

    Attributes:
        energies: squared singular values, non-increasing, [n], float64.
        narrow, wide: W′ of rank r is wide[:, :r] @ narrow[:r] (transposed where in > out);
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
        a, b = narrow.norm(dim=1), wide.norm(dim=0)
        tiny = torch.finfo(narrow.dtype).tiny
        scale = (b.clamp_min(tiny) / a.clamp_min(tiny)).sqrt()
        narrow, wide = narrow * scale[:, None], wide / scale
        return (wide.T, narrow.T) if self.transposed else (narrow, wide)


def decompose(
    weight: Tensor,
    moments: Moments | None = None,
    *,
    keep: int | None = None,
    dtype: torch.dtype | None = None,
) -> Decomposition:
    """Spectrum and basis of a layer.

    Args:
        weight: [out, in].
        moments: of the layer; None means the plain SVD of the weight.
        keep: how many components of the basis to keep; all by default.
        dtype: what to compute in. By default float32 for plain spectra, where the excess over
            the optimal error stays below 1e-6 of the weight's energy, and float64 with moments,
            whose products square the condition number twice.

    Raises:
        ValueError: weight is not a matrix.
    """
    if weight.ndim != 2:
        raise ValueError(f"a layer's weight is a matrix, not of shape {tuple(weight.shape)}")
    transposed = weight.shape[1] > weight.shape[0]
    dtype = dtype or (torch.float32 if moments is None else torch.float64)
    W = (weight.T if transposed else weight).to(dtype)  # m × n, n ≤ m
    A = W.T @ W
    L = None
    if moments is not None:
        damp_near, damp_far = (DAMP_OUTPUT, DAMP_INPUT) if transposed else (DAMP_INPUT, DAMP_OUTPUT)
        if moments.far is not None:
            A = moments.far.to(A) + damp_far * moments.far_level * A
        if moments.near is not None:
            L = _root(moments.near.to(A), damp_near * moments.near_level)
            A = L.T @ A @ L
    values, vectors = torch.linalg.eigh(A)
    vectors = vectors.flip(1)[:, :keep]
    energies = values.flip(0).double().clamp_min(0.0)
    if L is None:
        narrow, wide = vectors.T, W @ vectors
    else:
        wide = W @ (L @ vectors)
        narrow = torch.linalg.solve_triangular(L.T, vectors, upper=True).T
    return Decomposition(energies, narrow, wide, transposed)


def absorb_mean(
    weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, mean: Tensor | None
) -> Tensor | None:
    """The bias [out] that takes up the mean of the error: b′ = b + (W − W′) μ."""
    if bias is None or mean is None:
        return bias
    mu = mean.double()
    error = weight.double() @ mu - up.double() @ (down.double() @ mu)
    return (bias.double() + error).to(bias.dtype)


def _root(moment: Tensor, damping: float) -> Tensor:
    """A lower-triangular L with L Lᵀ = moment + damping·1, also for singular moments."""
    eye = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    # A moment of zeros (a layer whose gradient never flows) still needs a root.
    damping = max(damping, torch.finfo(moment.dtype).tiny ** 0.5)
    for _ in range(8):  # rounding can make a singular moment slightly indefinite
        root: Tensor
        root, info = torch.linalg.cholesky_ex(moment + damping * eye)
        if not info.any():
            return root
        damping *= 10
    values, vectors = torch.linalg.eigh(moment)
    half = vectors * values.clamp_min(damping).sqrt()
    # Any root will do; the QR of half's transpose gives the triangular one.
    upper: Tensor = torch.linalg.qr(half.T).R
    return upper.T
