"""Forward and backward passes over a few hundred unlabelled samples → the layers' moments.

One forward pass gives the mean and covariance of every layer's inputs. Backward passes of random
±1 projections of the model's standardised output give the second moment of the gradients at every
layer's output, with no labels: E[(Jᵀε)(Jᵀε)ᵀ] = JᵀJ for ε of independent signs.

The damage is a sum over tokens of gᵀ(W − W′)x xᵀ(W − W′)ᵀg, and a product of two moments stands for
it as if x and g were independent. They are not: the output depends far more on a class token than
on a patch. So the inputs' moments weigh each token by the output's sensitivity to it.

Only products of the layer's narrower side are summed up (see `pelacli.factorize.spectra`), so the
passes stay cheap: for in < out those of the inputs x and the back-propagated g·W, else those of the
outputs W x and g.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.factorize.moments import Moments, narrow_in
from pelacli.factorize.observation import FLOOR, LayerSums, ObservedCall, ObservedLinear
from pelacli.lowrank.calls import LinearCalls, evaluating
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.padding import padding_mask, unpadded

# Backward passes per batch: each lowers the noise of the signs, at a price above a forward pass.
PROJECTIONS = 2


@dataclass(frozen=True)
class Passes:
    """How calibration passes over the samples.

    Attributes:
        gradients: also collect output-gradient moments; else only inputs count.
        projections: of the output that are propagated back, per batch.
        floor: the least weight of a token in its inputs' moments, where the mean is 1; at 1 all
            tokens weigh the same.
        seed: of the random signs.
    """

    gradients: bool = True
    projections: int = PROJECTIONS
    floor: float = FLOOR
    seed: int = 0


def collect(
    module: nn.Module,
    layers: Iterable[Layer],
    batches: Iterable[Any],
    predict: Callable[[nn.Module, Any], Tensor],
    passes: Passes | None = None,
    *,
    advance: Callable[[int], None] = lambda samples: None,
) -> dict[str, Moments]:
    """Moments of the layers over the batches.

    Args:
        batches: what ``predict`` takes: a tensor [B, ...], or a dict of tensors [B, ...] whose
            ``attention_mask``, if any, marks the padding.
        predict: (module, batch) → the model's main output, [B, ...].
        advance: called after each batch with its number of samples.

    Returns:
        layer name → moments; a layer that no batch reached is missing.

    Raises:
        RequestError: no batches, or values that are not finite.
    """
    passes = passes or Passes()
    layers = [layer for layer in layers if layer.reason is None]
    sums = {layer.name: LayerSums(narrow_in(layer.shape)) for layer in layers}
    generator = torch.Generator().manual_seed(passes.seed)
    samples = 0
    with _frozen(module):
        for number, batch in enumerate(batches):
            calls: list[ObservedCall] = []
            watch = _watch(layers, sums, calls, number, batch, passes.gradients)
            output = _pass(module, batch, predict, watch, passes, generator)
            for call in calls:
                call.finish(passes.floor)
            samples += len(output)
            advance(len(output))
    if not samples:
        raise RequestError("calibration: there are no samples; give at least one batch")
    moments = _moments(layers, sums, samples, passes.projections)
    _check_finite(moments)
    return moments


def _watch(
    layers: Sequence[Layer],
    sums: Mapping[str, LayerSums],
    calls: list[ObservedCall],
    number: int,
    batch: Any,
    gradients: bool,
) -> LinearCalls:
    """In the pass of one batch, send each call of a layer through `ObservedLinear`, and list it."""
    mask = padding_mask(batch)
    mask = None if mask is None else mask.bool()

    def apply(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(ObservedCall(sums[layer.name], number, mask))
        if gradients and not x.requires_grad:
            # All weights are frozen, so the first layers on the way must ask for gradients.
            x = x.detach().requires_grad_()
        y: Tensor = ObservedLinear.apply(x, weight, bias, calls[-1])
        return y

    return LinearCalls(layers, apply)


def _pass(
    module: nn.Module,
    batch: Any,
    predict: Callable[[nn.Module, Any], Tensor],
    watch: LinearCalls,
    passes: Passes,
    generator: torch.Generator,
) -> Tensor:
    """One forward pass, and the backward passes of its projections. Gives the output."""
    with evaluating(module), torch.set_grad_enabled(passes.gradients):
        with watch:
            output = predict(module, batch)
        if output.requires_grad:  # it does where any layer was on the way to it
            rows = unpadded(output, padding_mask(batch))
            for left in reversed(range(passes.projections)):
                torch.autograd.backward(_project(rows, generator), retain_graph=left > 0)
    return output


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No parameter wants gradients for the time of the block."""
    flags = [parameter.requires_grad for parameter in module.parameters()]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(module.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)


def _project(output: Tensor, generator: torch.Generator) -> Tensor:
    """Σ ε·y over the standardised output, with independent random signs ε."""
    flat = output.float().reshape(-1, output.shape[-1])
    std = flat.detach().std(0, correction=0)
    # One sample has no spread, and a dead output tells nothing: both count as they are.
    std = torch.where(std > 1e-6 * flat.detach().abs().amax().clamp_min(1e-30), std, 1.0)
    signs = torch.randint(0, 2, flat.shape, generator=generator).to(flat) * 2 - 1
    return (flat / std * signs).sum()


def _moments(
    layers: Sequence[Layer], sums: Mapping[str, LayerSums], samples: int, projections: int
) -> dict[str, Moments]:
    """The moments of the layers that ran.

    What the output does not depend on here (a pooler beside the mean of the tokens) may be what
    another head reads: it counts as if its gradients were of the others' median size.
    """
    levels = [
        sums[layer.name].output_level(samples * projections, layer.shape[0])
        for layer in layers
        if sums[layer.name].gradient_square is not None
    ]
    level = statistics.median(levels) if levels else None
    return {
        layer.name: sums[layer.name].moments(samples, projections, layer.shape, level)
        for layer in layers
        if sums[layer.name].tokens
    }


def _check_finite(moments: Mapping[str, Moments]) -> None:
    for name, known in moments.items():
        for moment in (known.near, known.far):
            if moment is not None and not moment.isfinite().all():
                raise RequestError(
                    f"calibration: {name} sees values that are not finite; "
                    "check the samples and the weights"
                )
