"""Sequential correction: cut the layers front to back, each for the inputs it will really get.

Two streams of the same samples walk through the network together: the dense one, and one in which
the layers so far are cut already. At a layer with dense input x and compressed input x̂, the weight
that best gives the dense output from x̂ is W* = W·E[x x̂ᵀ]·E[x̂ x̂ᵀ]⁻¹ (least squares, means taken
out). The layer is cut from a blend of W* and W, in the metric of x̂, and its bias brings the mean
output back to the dense one. So errors are met where they arise and stop adding up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.calls import evaluating
from pelacli.factorize import Moments, decompose
from pelacli.lockstep import Call, lockstep
from pelacli.lowrank import Layer

Factors = tuple[Tensor, Tensor, "Tensor | None"]

# Share of the mean diagonal added to the compressed inputs' covariance (docs/log.md).
DAMP = 1e-3


def correct(
    module: nn.Module,
    layers: Sequence[Layer],
    ranks: Mapping[str, int],
    moments: Mapping[str, Moments],
    batches: Sequence[Any],
    predict: Callable[[nn.Module, Any], Any],
    *,
    blend: float = 0.5,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Factors]:
    """Factors of the planned layers, cut one after the other.

    Args:
        module: the dense model; it stays as it is.
        ranks: layer → rank, of the layers to cut.
        moments: of the dense model; their output-gradient sides are used again.
        batches: calibration samples, all in memory: what ``predict`` takes.
        blend: share of the refitted weight W*, 0 to 1.
        advance: called after each layer.

    Returns:
        layer → (down [r, in], up [out, r], bias). A layer that no batch reaches is missing.
    """
    planned = [layer for layer in layers if layer.name in ranks]
    found: dict[str, Factors] = {}
    half = len(batches)
    # Walkers 0 … half − 1 are the dense stream, the others the compressed one.
    with (
        evaluating(module),
        lockstep(module, planned, [*batches, *batches], predict) as stops,
    ):
        for calls in stops:
            layer = calls[0].layer
            if layer.name not in found:
                pairs = _pairs(calls, batches, half)
                found[layer.name] = _cut(
                    layer, ranks[layer.name], moments.get(layer.name), pairs, blend
                )
                advance()
            for call in calls:
                call.output = _output(call, found[layer.name] if call.walker >= half else None)
    return found


def _output(call: Call, factors: Factors | None) -> Tensor:
    if factors is None:
        return F.linear(call.x, call.weight, call.bias)
    down, up, bias = factors
    return F.linear(F.linear(call.x, down), up, bias)


def _pairs(calls: Sequence[Call], batches: Sequence[Any], half: int) -> list[tuple[Tensor, Tensor]]:
    """(dense, compressed) inputs of the layer, [tokens, in] each, without padding."""
    dense = {call.walker: call.x for call in calls if call.walker < half}
    pairs = []
    for call in calls:
        if call.walker >= half and call.walker - half in dense:
            mask = None
            batch = batches[call.walker - half]
            if isinstance(batch, Mapping) and "attention_mask" in batch:
                mask = batch["attention_mask"].bool()
            pairs.append((_rows(dense[call.walker - half], mask), _rows(call.x, mask)))
    return pairs


def _rows(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None and x.shape[:-1] == mask.shape:
        x = x[mask]
    return x.reshape(-1, x.shape[-1]).float()


@dataclass
class _Joint:
    """Means and covariances of the two streams at one layer."""

    dense_mean: Tensor  # [in]
    mean: Tensor  # [in], of the compressed stream
    covariance: Tensor  # [in, in], of the compressed stream
    cross: Tensor  # [in, in], E[(x − μ)(x̂ − μ̂)ᵀ]
    level: float


def _joint(pairs: Sequence[tuple[Tensor, Tensor]]) -> _Joint:
    tokens = sum(len(dense) for dense, _ in pairs)
    dense_mean = sum((dense.sum(0, dtype=torch.float64) for dense, _ in pairs)) / tokens
    mean = sum((ours.sum(0, dtype=torch.float64) for _, ours in pairs)) / tokens
    assert isinstance(dense_mean, Tensor)
    assert isinstance(mean, Tensor)
    width = len(mean)
    covariance, cross = (torch.zeros(width, width) for _ in range(2))
    for dense, ours in pairs:
        centred = ours - mean.float()
        covariance.addmm_(centred.T, centred)
        cross.addmm_((dense - dense_mean.float()).T, centred)
    covariance, cross = covariance.double() / tokens, cross.double() / tokens
    return _Joint(dense_mean, mean, covariance, cross, float(covariance.diagonal().mean()))


def _cut(
    layer: Layer,
    rank: int,
    moments: Moments | None,
    pairs: Sequence[tuple[Tensor, Tensor]],
    blend: float,
) -> Factors:
    joint = _joint(pairs)
    weight = layer.weight.double()
    eye = torch.eye(len(joint.mean), dtype=torch.float64)
    damping = max(DAMP * joint.level, torch.finfo(torch.float32).tiny)
    root = torch.linalg.cholesky(joint.covariance + damping * eye)
    out, in_ = layer.shape
    if in_ <= out:
        # W* = W T with T = E[x x̂ᵀ] E[x̂ x̂ᵀ]⁻¹, so the gradients' moment seen through the weight
        # turns with it: Tᵀ (Wᵀ G W) T.
        T = torch.cholesky_solve((joint.cross + damping * eye).T, root).T
        T = blend * T + (1 - blend) * eye
        target = weight @ T
        far = None if moments is None or moments.far is None else T.T @ moments.far @ T
        base = moments or Moments()
        seen = replace(base, near=joint.covariance, far=far, near_level=joint.level)
    else:
        refit = torch.cholesky_solve((weight @ (joint.cross + damping * eye)).T, root).T
        target = blend * refit + (1 - blend) * weight
        far = target @ joint.covariance @ target.T
        base = moments or Moments()
        seen = replace(base, far=far, far_level=joint.level)
    down, up = decompose(target, seen, keep=rank).factors(rank)
    # The bias makes the mean output that of the dense layer.
    bias = layer.bias
    if bias is not None:
        shift = weight @ joint.dense_mean - up @ (down @ joint.mean)
        bias = (bias.double() + shift).to(bias.dtype)
    dtype = layer.weight.dtype
    return down.to(dtype), up.to(dtype), bias
