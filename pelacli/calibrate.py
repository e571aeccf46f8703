"""Forward and backward passes over a few hundred unlabelled samples → the layers' moments.

One forward pass gives the mean and covariance of every layer's inputs. Backward passes of random
±1 projections of the model's standardised output give the second moment of the gradients at every
layer's output, with no labels: E[(Jᵀε)(Jᵀε)ᵀ] = JᵀJ for ε of independent signs.

The damage is a sum over tokens of gᵀ(W − W′)x xᵀ(W − W′)ᵀg, and a product of two moments stands
for it as if x and g had nothing to do with each other. They have: a class token's output is felt
far more than a patch's. So the inputs' moments weigh each token by how strongly it is felt.

Only products of the layer's narrower side are summed up (see `pelacli.factorize`), so the passes
stay cheap: for in < out the inputs x and the back-propagated g·W, else the outputs W x and g.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.calls import LinearCalls, evaluating, token_rows, unpadded
from pelacli.errors import RequestError
from pelacli.factorize import Moments, narrow_in
from pelacli.lowrank import Layer
from pelacli.products import add_gram, mirrored

# Backward passes per batch: each lowers the noise of the signs, at a price above a forward pass.
PROJECTIONS = 2
# The least weight of a token, and the power of ‖g‖² in it: what one sample's few projections say of
# a token is noisy, and a token that they do not feel is still one. Measured in docs/log.md.
FLOOR, POWER = 0.2, 0.5


@dataclass
class _Sums:
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

    def add_forward(self, x: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """x: [tokens, in], y: [tokens, out] without bias, weights: [tokens], 1 on average."""
        v = x if self.narrow_in else y
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

    def add_backward(self, g: Tensor, gx: Tensor, felt: Tensor) -> None:
        """g: [tokens, out] gradient at the output, gx: [tokens, in] = g W, felt: [tokens] ‖g‖²."""
        self.gradient = _plus_gram(self.gradient, gx if self.narrow_in else g)
        self.gradient_square = _plus(self.gradient_square, felt.sum(dtype=torch.float64))

    def output_level(self, passes: int, out: int) -> float:
        """Mean diagonal of G, per sample."""
        assert self.gradient_square is not None
        return float(self.gradient_square) / passes / out

    def moments(
        self, samples: int, projections: int, shape: tuple[int, int], level: float | None
    ) -> Moments:
        """The layer's moments.

        Args:
            level: mean diagonal of G where no gradient came; None: one per token.
        """
        out, in_ = shape
        assert self.input_sum is not None
        assert self.input_square is not None
        assert self.centred_sum is not None
        assert self.gram is not None
        mean = self.input_sum / self.total
        offset = self.centred_sum / self.total
        covariance = mirrored(self.gram).double() / self.total - torch.outer(offset, offset)
        spread = float(self.input_square / self.total - mean.square().sum())
        input_level = max(spread, 0.0) / in_
        tokens = self.tokens / samples
        if self.gradient is None or self.gradient_square is None:
            G = tokens if level is None else level  # times the identity
            if self.narrow_in:
                return Moments(mean, covariance * G, None, input_level * G, 1.0, tokens)
            return Moments(mean, None, covariance * G, 1.0, input_level * G, tokens)
        gradient = mirrored(self.gradient).double() / (samples * projections)
        output_level = self.output_level(samples * projections, out)
        sides = (covariance, gradient) if self.narrow_in else (gradient, covariance)
        levels = (input_level, output_level) if self.narrow_in else (output_level, input_level)
        return Moments(mean, *sides, *levels, tokens, self.weights)


@dataclass
class _Seen:
    """One call of a layer: what went through it, and how strongly its tokens are felt."""

    sums: _Sums
    batch: int
    mask: Tensor | None  # [B, N] bool; padding is no token
    x: Tensor | None = None  # [tokens, in]
    y: Tensor | None = None  # [tokens, out], without bias
    felt: Tensor | None = None  # Σ‖g‖² over the projections, [tokens]

    def forward(self, x: Tensor, y: Tensor) -> None:
        """x: [..., in], y: [..., out] without bias."""
        self.x, self.y = token_rows(x, self.mask), token_rows(y, self.mask)

    def backward(self, g: Tensor, gx: Tensor) -> None:
        """g: [..., out] gradient at the output, gx: [..., in] = g W."""
        rows = token_rows(g, self.mask)
        felt = _square(rows)
        self.sums.add_backward(rows, token_rows(gx, self.mask), felt)
        self.felt = _plus(self.felt, felt)

    def finish(self, floor: float) -> None:
        """All projections have gone back."""
        assert self.x is not None
        assert self.y is not None
        weights = None
        if self.felt is not None and floor < 1:
            felt = self.felt**POWER
            weights = (1 - floor) * felt / felt.mean().clamp_min(1e-30) + floor
            self.sums.weights.setdefault(self.batch, weights)
        self.sums.add_forward(self.x, self.y, weights)


class _Observed(torch.autograd.Function):
    """A linear map that shows what passes through it, both ways."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, seen: _Seen) -> Tensor:
        y = F.linear(x, weight)
        ctx.save_for_backward(weight)
        ctx.seen = seen
        seen.forward(x, y)
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        gx = grads[0] @ weight
        ctx.seen.backward(grads[0], gx)
        return gx, None, None, None


def collect(
    module: nn.Module,
    layers: Iterable[Layer],
    batches: Iterable[Any],
    predict: Callable[[nn.Module, Any], Tensor],
    *,
    gradients: bool = True,
    projections: int = PROJECTIONS,
    floor: float = FLOOR,
    seed: int = 0,
    advance: Callable[[int], None] = lambda samples: None,
) -> dict[str, Moments]:
    """Moments of the layers over the batches.

    Args:
        batches: what ``predict`` takes: a tensor [B, ...], or a dict of tensors [B, ...] whose
            ``attention_mask``, if any, marks the padding.
        predict: (module, batch) → the model's main output, [B, ...].
        gradients: also collect output-gradient moments; else only inputs count.
        projections: of the output that are propagated back, per batch.
        floor: the least weight of a token in its inputs' moments, where the mean is 1; at 1 all
            tokens weigh the same.
        seed: of the random signs.
        advance: told the number of samples after each batch.

    Returns:
        layer name → moments; a layer that no batch reached is missing.

    Raises:
        RequestError: no batches, or values that are not finite.
    """
    layers = [layer for layer in layers if layer.reason is None]
    sums = {la.name: _Sums(narrow_in=narrow_in(la.shape)) for la in layers}
    generator = torch.Generator().manual_seed(seed)
    samples, number, mask = 0, -1, None
    calls: list[_Seen] = []

    def apply(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(_Seen(sums[layer.name], number, mask))
        if gradients and not x.requires_grad:
            # All weights are frozen, so the first layers on the way must ask for gradients.
            x = x.detach().requires_grad_()
        y: Tensor = _Observed.apply(x, weight, bias, calls[-1])
        return y

    wanted = [p.requires_grad for p in module.parameters()]
    module.requires_grad_(False)
    try:
        for batch in batches:
            number += 1
            mask = batch.get("attention_mask") if isinstance(batch, dict) else None
            mask = None if mask is None else mask.bool()
            with evaluating(module), torch.set_grad_enabled(gradients):
                with LinearCalls(layers, apply):
                    output = predict(module, batch)
                if output.requires_grad:  # it does where any layer was on the way to it
                    for left in reversed(range(projections)):
                        projected = _project(unpadded(output, mask), generator)
                        torch.autograd.backward(projected, retain_graph=left > 0)
            for call in calls:
                call.finish(floor)
            calls.clear()
            samples += len(output)
            advance(len(output))
    finally:
        for parameter, flag in zip(module.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)
    if not samples:
        raise RequestError("calibration: there are no samples; give at least one batch")
    # What the output does not depend on here (a pooler beside the mean of the tokens) may be what
    # another head reads: it counts as if it were felt like the others.
    felt = [
        sums[la.name].output_level(samples * projections, la.shape[0])
        for la in layers
        if sums[la.name].gradient_square is not None
    ]
    level = statistics.median(felt) if felt else None
    found = {
        la.name: sums[la.name].moments(samples, projections, la.shape, level)
        for la in layers
        if sums[la.name].tokens
    }
    for name, moments in found.items():
        for moment in (moments.near, moments.far):
            if moment is not None and not moment.isfinite().all():
                raise RequestError(
                    f"calibration: {name} sees values that are not finite; "
                    "check the samples and the weights"
                )
    return found


def _project(output: Tensor, generator: torch.Generator) -> Tensor:
    """Σ ε·y over the standardised output, with independent random signs ε."""
    flat = output.float().reshape(-1, output.shape[-1])
    std = flat.detach().std(0, correction=0)
    # One sample has no spread, and a dead output tells nothing: both count as they are.
    std = torch.where(std > 1e-6 * flat.detach().abs().amax().clamp_min(1e-30), std, 1.0)
    signs = torch.randint(0, 2, flat.shape, generator=generator).to(flat) * 2 - 1
    return (flat / std * signs).sum()


def _square(rows: Tensor) -> Tensor:
    """‖row‖² of every row, without a copy of them all."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms.square_()


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total.add_(term)


def _plus_gram(total: Tensor | None, rows: Tensor) -> Tensor:
    """Σ row rowᵀ, its lower triangle."""
    if total is None:
        total = rows.new_zeros(rows.shape[1], rows.shape[1])
    add_gram(total, rows, rows)
    return total
