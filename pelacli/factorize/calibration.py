"""Forward and backward passes over a few hundred unlabelled samples → the layers' moments.

One forward pass gives the mean and covariance of every layer's inputs. Backward passes of random
±1 projections of the model's standardised output give the second moment of the gradients at every
layer's output, with no labels: E[(Jᵀε)(Jᵀε)ᵀ] = JᵀJ for ε of independent signs.

The damage is a sum over tokens of gᵀ(W − W′)x xᵀ(W − W′)ᵀg, and a product of two moments stands
for it as if x and g had nothing to do with each other. They have: a class token's output is felt
far more than a patch's. So the inputs' moments weigh each token by how strongly it is felt.

Only products of the layer's narrower side are summed up (see `pelacli.factorize.spectra`), so the passes
stay cheap: for in < out the inputs x and the back-propagated g·W, else the outputs W x and g.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.factorize.moments import Moments, narrow_in
from pelacli.factorize.observation import FLOOR, LayerSums, ObservedCall, ObservedLinear
from pelacli.lowrank.calls import LinearCalls, evaluating
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.padding import unpadded

# Backward passes per batch: each lowers the noise of the signs, at a price above a forward pass.
PROJECTIONS = 2


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
    sums = {la.name: LayerSums(narrow_in=narrow_in(la.shape)) for la in layers}
    generator = torch.Generator().manual_seed(seed)
    samples, number, mask = 0, -1, None
    calls: list[ObservedCall] = []

    def apply(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(ObservedCall(sums[layer.name], number, mask))
        if gradients and not x.requires_grad:
            # All weights are frozen, so the first layers on the way must ask for gradients.
            x = x.detach().requires_grad_()
        y: Tensor = ObservedLinear.apply(x, weight, bias, calls[-1])
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
