"""What calibration observes of a layer's calls: running sums of inputs and of output-gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pelacli.factorize.moments import Moments
from pelacli.factorize.symmetric import add_gram, mirrored, safe_scale, scaled
from pelacli.lowrank.padding import token_rows

# The least weight of a token, and the power of its sensitivity ‖g‖² in that weight. What one
# sample's few projections say of a token is noisy, so none may count for nothing. Measured in
# docs/log/calibration-and-refit.md.
FLOOR, POWER = 0.2, 0.5


@dataclass
class LayerSums:
    """Running sums of one layer, in float32, around a shift so that they do not cancel.

    Those of the inputs are weighted by token, w.
    """

    narrow_in: bool  # in < out
    tokens: int = 0
    total: float = 0.0  # Σ w
    input_sum: Tensor | None = None  # Σ w x, [in]
    shift: Tensor | None = None  # of the vectors in `gram`, [n]
    centred_sum: Tensor | None = None  # Σ w (v − shift), [n]
    gram: Tensor | None = None  # Σ w (v − shift)(v − shift)ᵀ, [n, n]; v = x, or W x where in ≥ out
    input_square: Tensor | None = None  # Σ w ‖x‖²
    gradient: Tensor | None = None  # Σ u uᵀ, [n, n]; u = g W, or g where in ≥ out
    gradient_square: Tensor | None = None  # Σ‖g‖²
    weights: dict[int, Tensor] = field(default_factory=dict)  # batch → w of its first call
    # What x, v, g and u are multiplied by in the sums, so that their squares are finite.
    x_scale: float | None = None
    v_scale: float = 1.0
    g_scale: float | None = None
    u_scale: float = 1.0

    def add_forward(self, x: Tensor, y: Tensor | None, weights: Tensor | None = None) -> None:
        """x: [tokens, in], y: [tokens, out] without bias, which only a layer with in ≥ out needs,
        weights: [tokens], 1 on average."""
        if self.x_scale is None:
            self.x_scale = safe_scale(x)
            self.v_scale = self.x_scale if y is None else safe_scale(y)
        x = scaled(x, self.x_scale)
        v = x if y is None else scaled(y, self.v_scale)
        if self.shift is None:
            self.shift = v.mean(0)
        centred = v - self.shift
        self.tokens += len(x)
        if weights is None:
            weights = x.new_ones(len(x))
        self.total += float(weights.sum(dtype=torch.float64))
        self.input_sum = _plus(self.input_sum, (weights @ x).double())
        self.input_square = _plus(self.input_square, (weights @ _square(x)).double())
        self.centred_sum = _plus(self.centred_sum, (weights @ centred).double())
        rows = centred.mul_(weights.sqrt()[:, None])
        self.gram = _plus_gram(self.gram, rows)

    def add_backward(self, g: Tensor, gx: Tensor) -> Tensor:
        """Add the output-gradient g [tokens, out] and gx = g W [tokens, in]; gives ‖g‖² [tokens]
        up to a factor that is the same for all of the layer's tokens."""
        if self.g_scale is None:
            self.g_scale = safe_scale(g)
            self.u_scale = safe_scale(gx) if self.narrow_in else self.g_scale
        g = scaled(g, self.g_scale)
        self.gradient = _plus_gram(self.gradient, scaled(gx, self.u_scale) if self.narrow_in else g)
        sensitivity = _square(g)
        self.gradient_square = _plus(self.gradient_square, sensitivity.sum(dtype=torch.float64))
        return sensitivity

    def add(self, other: LayerSums) -> None:
        """Add the sums of other samples, which may lie around another shift and be scaled
        otherwise. The weights of tokens stay those of this one's batches."""
        if not other.tokens:
            return
        if not self.tokens:
            kept = self.weights
            vars(self).update(vars(other) | {"weights": kept})
            return
        self._add_inputs(other)
        if other.gradient is None:
            return
        if self.gradient is None:
            self.gradient, self.gradient_square = other.gradient, other.gradient_square
            self.g_scale, self.u_scale = other.g_scale, other.u_scale
            return
        assert self.gradient_square is not None
        assert other.gradient_square is not None
        assert self.g_scale is not None
        assert other.g_scale is not None
        ratio = self.u_scale / other.u_scale
        self.gradient = _plus_scaled(self.gradient, other.gradient.double() * ratio**2, ratio)
        self.gradient_square += other.gradient_square * (self.g_scale / other.g_scale) ** 2

    def _add_inputs(self, other: LayerSums) -> None:
        assert self.x_scale is not None
        assert other.x_scale is not None
        assert self.input_sum is not None
        assert other.input_sum is not None
        assert self.input_square is not None
        assert other.input_square is not None
        assert self.centred_sum is not None
        assert other.centred_sum is not None
        assert self.gram is not None
        assert other.gram is not None
        assert self.shift is not None
        assert other.shift is not None
        x_ratio, ratio = self.x_scale / other.x_scale, self.v_scale / other.v_scale
        self.input_sum += other.input_sum * x_ratio
        self.input_square += other.input_square * x_ratio**2
        # v − shift is ratio·(v′ − shift′) + moved, where v′ and shift′ are the other's.
        moved = ratio * other.shift.double() - self.shift.double()
        centred = ratio * other.centred_sum
        crossed = torch.outer(centred, moved)
        gram = other.gram.double() * ratio**2 + crossed + crossed.T
        gram += other.total * torch.outer(moved, moved)
        self.gram = _plus_scaled(self.gram, gram, ratio)
        self.centred_sum += centred + other.total * moved
        self.tokens += other.tokens
        self.total += other.total

    def output_level(self, passes: int, out: int) -> float:
        """Mean diagonal of G, per sample."""
        assert self.gradient_square is not None
        assert self.g_scale is not None
        return float(self.gradient_square) / self.g_scale**2 / passes / out

    def moments(
        self,
        samples: int,
        draws: int,
        shape: tuple[int, int],
        level: float | None,
        *,
        centred: bool,
    ) -> Moments:
        """The layer's moments.

        Args:
            level: mean diagonal of G where no gradient came; None: one per token.
            centred: whether the inputs are taken about their mean, which the layer's bias then has
                to take up. A layer without a bias can't: it has to keep its mean too.
        """
        out, in_ = shape
        assert self.input_sum is not None
        assert self.input_square is not None
        assert self.centred_sum is not None
        assert self.gram is not None
        assert self.shift is not None
        assert self.x_scale is not None
        mean = self.input_sum / self.total / self.x_scale
        offset = self.centred_sum / self.total
        covariance = mirrored(self.gram).double() / self.total - torch.outer(offset, offset)
        square = float(self.input_square / self.total) / self.x_scale**2
        if centred:
            square = max(square - float(mean.square().sum()), 0.0)
        else:
            middle = self.shift.double() + offset
            covariance += torch.outer(middle, middle)
        covariance /= self.v_scale**2
        input_level = square / in_
        absorbed = mean if centred else None
        tokens = self.tokens / samples
        if self.gradient is None or self.gradient_square is None:
            G = tokens if level is None else level  # times the identity
            if self.narrow_in:
                return Moments(absorbed, covariance * G, None, input_level * G, 1.0, tokens)
            return Moments(absorbed, None, covariance * G, 1.0, input_level * G, tokens)
        gradient = mirrored(self.gradient).double() / (samples * draws) / self.u_scale**2
        output_level = self.output_level(samples * draws, out)
        sides = (covariance, gradient) if self.narrow_in else (gradient, covariance)
        levels = (input_level, output_level) if self.narrow_in else (output_level, input_level)
        return Moments(absorbed, *sides, *levels, tokens, self.weights)


class SeenCall(Protocol):
    """One call of a layer, as `ObservedLinear` shows it to whoever looks on."""

    def forward(self, x: Tensor, y: Tensor) -> None:
        """x: [..., in], y: [..., out] without bias."""
        ...

    def backward(self, g: Tensor, gx: Tensor) -> None:
        """g: [..., out] gradient at the output, gx: [..., in] = g W."""
        ...


@dataclass
class ObservedCall:
    """One call of a layer: what went through it, and how sensitive the output is to its tokens."""

    sums: LayerSums
    batch: int
    mask: Tensor | None  # [B, N] bool; padding is no token
    x: Tensor | None = None  # [tokens, in]
    y: Tensor | None = None  # [tokens, out], without bias; where in ≥ out
    sensitivity: Tensor | None = None  # Σ‖g‖² over the draws, [tokens]

    def forward(self, x: Tensor, y: Tensor) -> None:
        """x: [..., in], y: [..., out] without bias."""
        self.x = token_rows(x, self.mask)
        if not self.sums.narrow_in:
            self.y = token_rows(y, self.mask)

    def backward(self, g: Tensor, gx: Tensor) -> None:
        """g: [..., out] gradient at the output, gx: [..., in] = g W."""
        rows = token_rows(g, self.mask)
        sensitivity = self.sums.add_backward(rows, token_rows(gx, self.mask))
        self.sensitivity = _plus(self.sensitivity, sensitivity)

    def finish(self, floor: float) -> None:
        """Add the call to the sums, when all draws have been propagated back."""
        assert self.x is not None
        weights = None
        if self.sensitivity is not None and floor < 1:
            share = self.sensitivity**POWER
            weights = (1 - floor) * share / share.mean().clamp_min(1e-30) + floor
            self.sums.weights.setdefault(self.batch, weights)
        self.sums.add_forward(self.x, self.y, weights)


class ObservedLinear(torch.autograd.Function):
    """A linear map that shows its call what passes through it, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, call: SeenCall) -> Tensor:
        y = F.linear(x, weight)
        ctx.save_for_backward(weight)
        ctx.call = call
        call.forward(x, y)
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        gx = grads[0] @ weight
        ctx.call.backward(grads[0], gx)
        return gx, None, None, None


def _square(rows: Tensor) -> Tensor:
    """‖row‖² of every row, without a copy of them all."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms.square_()


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total.add_(term)


def _plus_scaled(total: Tensor, term: Tensor, ratio: float) -> Tensor:
    """The sum in the total's precision; in float64, which holds any, where the term had another
    scale."""
    total = total.double() + term
    return total.float() if ratio == 1 else total


def _plus_gram(total: Tensor | None, rows: Tensor) -> Tensor:
    """Σ row rowᵀ, its lower triangle."""
    if total is None:
        total = rows.new_zeros(rows.shape[1], rows.shape[1])
    add_gram(total, rows, rows)
    return total
