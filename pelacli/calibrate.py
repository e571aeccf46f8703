"""Forward and backward passes over a few hundred unlabelled samples → the layers' moments.

One forward pass gives the mean and covariance of every layer's inputs. One backward pass of a
random ±1 projection of the model's standardised output gives the second moment of the gradients
at every layer's output, with no labels: E[(Jᵀε)(Jᵀε)ᵀ] = JᵀJ for ε of independent signs.

Only products of the layer's narrower side are summed up (see `pelacli.factorize`), so the passes
stay cheap: for in < out the inputs x and the back-propagated g·W, else the outputs W x and g.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.calls import LinearCalls, evaluating
from pelacli.errors import RequestError
from pelacli.factorize import Moments, narrow_in
from pelacli.lowrank import Layer


@dataclass
class _Sums:
    """Running sums of one layer, in float32, around a shift so that they do not cancel."""

    narrow_in: bool  # in < out
    tokens: int = 0
    input_sum: Tensor | None = None  # Σ x, [in]
    shift: Tensor | None = None  # of the vectors in `gram`, [n]
    centred_sum: Tensor | None = None  # Σ (v − shift), [n]
    gram: Tensor | None = None  # Σ (v − shift)(v − shift)ᵀ, [n, n]; v = x, or W x where in ≥ out
    input_square: Tensor | None = None  # Σ‖x‖²
    gradient: Tensor | None = None  # Σ u uᵀ, [n, n]; u = g W, or g where in ≥ out
    gradient_square: Tensor | None = None  # Σ‖g‖²

    def add_forward(self, x: Tensor, y: Tensor) -> None:
        """x: [tokens, in], y: [tokens, out] without bias."""
        v = x if self.narrow_in else y
        if self.shift is None:
            self.shift = v.mean(0)
        centred = v - self.shift
        self.tokens += len(x)
        self.input_sum = _plus(self.input_sum, x.sum(0, dtype=torch.float64))
        self.input_square = _plus(self.input_square, x.square().sum(dtype=torch.float64))
        self.centred_sum = _plus(self.centred_sum, centred.sum(0, dtype=torch.float64))
        self.gram = _plus_gram(self.gram, centred)

    def add_backward(self, g: Tensor, gx: Tensor) -> None:
        """g: [tokens, out] gradient at the output, gx: [tokens, in] = g W."""
        self.gradient = _plus_gram(self.gradient, gx if self.narrow_in else g)
        self.gradient_square = _plus(self.gradient_square, g.square().sum(dtype=torch.float64))

    def moments(self, samples: int, shape: tuple[int, int]) -> Moments:
        out, in_ = shape
        assert self.input_sum is not None
        assert self.input_square is not None
        assert self.centred_sum is not None
        assert self.gram is not None
        mean = self.input_sum / self.tokens
        offset = self.centred_sum / self.tokens
        covariance = self.gram.double() / self.tokens - torch.outer(offset, offset)
        spread = float(self.input_square / self.tokens - mean.square().sum())
        input_level = max(spread, 0.0) / in_
        tokens = self.tokens / samples
        if self.gradient is None or self.gradient_square is None:
            # Without gradients G is the identity at every token, per sample: tokens · 1.
            if self.narrow_in:
                return Moments(mean, covariance * tokens, None, input_level * tokens, 1.0, tokens)
            return Moments(mean, None, covariance * tokens, 1.0, input_level * tokens, tokens)
        gradient = self.gradient.double() / samples
        output_level = float(self.gradient_square) / samples / out
        if self.narrow_in:
            return Moments(mean, covariance, gradient, input_level, output_level, tokens)
        return Moments(mean, gradient, covariance, output_level, input_level, tokens)


class _Observed(torch.autograd.Function):
    """A linear map that adds what passes through it, both ways, to the layer's sums."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, seen: _Seen) -> Tensor:
        y = F.linear(x, weight)
        ctx.save_for_backward(weight)
        ctx.seen = seen
        seen.sums.add_forward(seen.rows(x), seen.rows(y))
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        g = grads[0]
        gx = g @ weight
        ctx.seen.sums.add_backward(ctx.seen.rows(g), ctx.seen.rows(gx))
        return gx, None, None, None


@dataclass
class _Seen:
    sums: _Sums
    mask: Tensor | None  # [B, N] bool; padding is no token

    def rows(self, t: Tensor) -> Tensor:
        """[..., width] → [tokens, width] in float32, without padding."""
        if self.mask is not None and t.shape[:-1] == self.mask.shape:
            t = t[self.mask]
        return t.reshape(-1, t.shape[-1]).float()


def collect(
    module: nn.Module,
    layers: Iterable[Layer],
    batches: Iterable[Any],
    predict: Callable[[nn.Module, Any], Tensor],
    *,
    gradients: bool = True,
    seed: int = 0,
    advance: Callable[[int], None] = lambda samples: None,
) -> dict[str, Moments]:
    """Moments of the layers over the batches.

    Args:
        batches: what ``predict`` takes: a tensor [B, ...], or a dict of tensors [B, ...] whose
            ``attention_mask``, if any, marks the padding.
        predict: (module, batch) → the model's main output, [B, ...].
        gradients: also collect output-gradient moments; else only inputs count.
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
    samples, mask = 0, None

    def apply(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen = _Seen(sums[layer.name], mask)
        if gradients and not x.requires_grad:
            # All weights are frozen, so the first layers on the way must ask for gradients.
            x = x.detach().requires_grad_()
        y: Tensor = _Observed.apply(x, weight, bias, seen)
        return y

    wanted = [p.requires_grad for p in module.parameters()]
    module.requires_grad_(False)
    try:
        for batch in batches:
            mask = batch.get("attention_mask") if isinstance(batch, dict) else None
            mask = None if mask is None else mask.bool()
            with evaluating(module), torch.set_grad_enabled(gradients):
                with LinearCalls(layers, apply):
                    output = predict(module, batch)
                if output.requires_grad:  # it does where any layer was on the way to it
                    torch.autograd.backward(_project(output, generator))
            samples += len(output)
            advance(len(output))
    finally:
        for parameter, flag in zip(module.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)
    if not samples:
        raise RequestError("calibration: there are no samples; give at least one batch")
    found = {
        la.name: sums[la.name].moments(samples, la.shape) for la in layers if sums[la.name].tokens
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


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    return term.detach() if total is None else total.add_(term.detach())


def _plus_gram(total: Tensor | None, rows: Tensor) -> Tensor:
    rows = rows.detach()
    if total is None:
        return rows.T @ rows
    return total.addmm_(rows.T, rows)
