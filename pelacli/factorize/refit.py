"""Sequential correction: refit and cut the layers front to back, each for the inputs that it gets.

Two streams of the same samples walk through the network: the dense one, and one in which the layers
so far are cut already. At a layer with dense input x and compressed input x̂ the weight that best
gives the dense output y from x̂ is the regression of y on x̂, held to the old weight by a ridge. It
is cut in the metric of x̂, and the bias brings the mean output back to the dense one. So errors are
met where they arise and stop adding up.

A layer whose output is added to a residual stream (`pelacli.factorize.residual`) is asked for more:
what the stream has lost so far, h − ĥ, is added to its target, as far as x̂ can tell it. So a later
layer pays back a loss that an earlier one could not help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.factorize.factors import decompose
from pelacli.factorize.lockstep import Call, lockstep
from pelacli.factorize.moments import Moments, narrow_in
from pelacli.factorize.residual import Sum, owed
from pelacli.factorize.symmetric import add_gram, mirrored, safe_scale, scaled
from pelacli.lowrank.calls import evaluating
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.padding import padding_mask, token_rows
from pelacli.lowrank.replace import Factors
from pelacli.system import processes

# Share of the compressed inputs' mean variance that holds the regression to the old weight, and
# share of the residual stream's loss that is asked back. Measured in
# docs/log/calibration-and-refit.md.
RIDGE = 0.1
PAYBACK = 0.7


def correct(
    module: nn.Module,
    layers: Sequence[Layer],
    ranks: Mapping[str, int],
    moments: Mapping[str, Moments],
    batches: Sequence[Any],
    predict: Callable[[nn.Module, Any], Any],
    *,
    compressed: Sequence[Any] | None = None,
    masks: Sequence[Tensor | None] | None = None,
    ridge: float = RIDGE,
    payback: float = PAYBACK,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Factors]:
    """Factors of the planned layers, refitted and cut one after the other.

    Args:
        module: the dense model; it stays as it is.
        ranks: layer → rank, of the layers to cut.
        moments: of the dense model; their output-gradient sides are used again.
        batches: calibration samples, all in memory: what ``predict`` takes. They must be the very
            batches of the moments, and each costs two threads: see `pelacli.factorize.batches`.
        compressed: what the second stream walks on, batch by batch, where it is not the same:
            states inside a model that layers before have changed.
        masks: of the batches' tokens, [B, N]; unset: as the batches say.
        ridge: share of the inputs' mean variance that holds the regression to the old weight.
        payback: share of the residual stream's loss that a layer is asked for, 0 to 1.
        advance: called after each layer.

    Returns:
        layer → (down [r, in], up [out, r], bias). A layer that no batch reaches is missing.
    """
    planned = [layer for layer in layers if layer.name in ranks]
    factors: dict[str, Factors] = {}
    compressed = batches if compressed is None else compressed
    masks = list(map(padding_mask, batches)) if masks is None else masks
    with (
        evaluating(module),
        lockstep(module, planned, batches, predict) as dense_stops,
        lockstep(module, planned, compressed, predict) as stops,
    ):
        dense = _DenseStream(dense_stops)
        for calls in stops:
            layer = calls[0].layer
            if layer.name not in factors:
                _meet(layer.name)
                known = moments.get(layer.name, Moments()).to(layer.weight.device)
                passages = dense.passages(layer.name, factors)
                # Not kept in a variable: it is as large as the streams.
                factors[layer.name] = _refit(
                    layer,
                    ranks[layer.name],
                    known,
                    _regression_data(calls, passages, masks, known.weights, payback),
                    ridge,
                )
                del passages
                advance()
            down, up, bias = factors[layer.name]
            for call in calls:
                added = _bias_in_call(call, bias)
                call.output = F.linear(F.linear(call.x, down), up, added)
        _meet(None)
    return factors


def _meet(layer: str | None) -> None:
    """Make sure that all processes refit the same layer now, since their sums are added.

    Args:
        layer: its name; None where this process has no layer left.

    Raises:
        RequestError: they do not.
    """
    names = processes.all_gather(layer)
    if len(set(names)) > 1:
        raise RequestError(
            "the samples take different ways through the model, so their correction can't be "
            "shared by processes; run decompose without the launcher, or with --no-correct"
        )


def _bias_in_call(call: Call, bias: Tensor | None) -> Tensor | None:
    """What a call must add so that the cut layer's bias is in its output once.

    Args:
        bias: of the cut layer; None where the dense layer has none.
    """
    dense = call.layer.bias
    if dense is None:  # the model may bring a bias of its own to the call
        return call.bias
    if call.bias is None and bias is not None:  # the model adds the dense bias after the call
        return bias - dense
    return bias


@dataclass(frozen=True)
class _Passage:
    """A dense call that is over, and the sum that its output went into, if any."""

    call: Call
    sum: Sum | None


class _DenseStream:
    """The dense stream. It is always one layer ahead: only then it knows where an output went."""

    def __init__(self, stops: Iterator[list[Call]]) -> None:
        self._stops = stops
        self._next = next(stops, None)
        self._passed: dict[str, dict[int, _Passage]] = {}

    def passages(self, name: str, refitted: Mapping[str, object]) -> dict[int, _Passage]:
        """Number of the batch → its passage through the layer of this name.

        Empty where the dense stream does not come by this layer at all.

        Args:
            refitted: layers that are done; a second passage through one is not kept.
        """
        while name not in self._passed and self._next is not None:
            calls = self._next
            for call in calls:
                call.output = F.linear(call.x, call.weight, call.bias)
            self._next = next(self._stops, None)
            if calls[0].layer.name not in refitted:
                passed = self._passed.setdefault(calls[0].layer.name, {})
                passed |= {call.walker: _Passage(call, call.watch.sum) for call in calls}
        return self._passed.pop(name, {})


@dataclass(frozen=True)
class _Part:
    """What one batch gives to the regression of a layer, without padding.

    Attributes:
        dense, compressed: inputs of the two streams, [tokens, in].
        target: the output to be met, without bias, [tokens, out]; None of a layer with in < out,
            whose regression is that of the inputs.
        target_sum: the weighted sum of its rows, [out]; None of a layer without a bias to meet it.
        weights: how strongly the model's output depends on each token, [tokens].
    """

    dense: Tensor
    compressed: Tensor
    target: Tensor | None
    target_sum: Tensor | None
    weights: Tensor


def _regression_data(
    calls: Sequence[Call],
    passages: Mapping[int, _Passage],
    masks: Sequence[Tensor | None],
    weights: Mapping[int, Tensor],
    payback: float,
) -> list[_Part]:
    parts = []
    for call in calls:
        passage = passages.get(call.walker)
        if passage is None or passage.call.x.shape != call.x.shape:
            passage = _Passage(call, None)  # the streams went different ways here
        mask = masks[call.walker]
        dense, compressed = (token_rows(x, mask) for x in (passage.call.x, call.x))
        token_weights = weights.get(call.walker)
        if token_weights is None or len(token_weights) != len(compressed):
            token_weights = compressed.new_ones(len(compressed))
        target = target_sum = None
        narrow, has_bias = narrow_in(call.layer.shape), call.layer.bias is not None
        if has_bias or not narrow:
            target = token_rows(_target(call, passage, payback), mask)
            target_sum = (token_weights @ target).double() if has_bias else None
        kept = None if narrow else target
        parts.append(_Part(dense, compressed, kept, target_sum, token_weights))
    return parts


def _target(call: Call, passage: _Passage, payback: float) -> Tensor:
    """The output [..., out] that the layer should have, without bias."""
    target = F.linear(passage.call.x, call.weight.detach())
    if payback and passage.sum is not None:
        stream = call.watch.output_of(passage.sum.call)
        if stream is not None and stream.shape == passage.sum.stream.shape:
            target = target + payback * owed(passage.sum, stream, target)
    return target


def _refit(
    layer: Layer, rank: int, known: Moments, parts: Sequence[_Part], ridge: float
) -> Factors:
    """The regression of the target on the compressed inputs, cut at the rank in their metric."""
    inputs = [part.compressed for part in parts]
    weights = [part.weights for part in parts]
    centred = layer.bias is not None  # only a bias can take up a mean

    def product(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        return _product(a, b, weights, centred=centred)

    covariance = product(inputs, inputs)
    level = float(covariance.diagonal().mean())
    # The ridge holds to the old weight, so it stands on both sides of the normal equations.
    # It is added in place and taken away again: a wide layer's matrices are what memory goes into.
    variances = covariance.diagonal().clone()
    covariance.diagonal().add_(max(ridge * level, torch.finfo(torch.float32).tiny))
    hold = covariance.diagonal() - variances
    root = torch.linalg.cholesky(covariance)
    covariance.diagonal().copy_(variances)
    weight = layer.weight.detach().double()
    if narrow_in(layer.shape):
        # The weight that gives y from x̂ is W T, where T gives x from x̂: then the gradients'
        # moment as seen through it is Tᵀ (Wᵀ G W) T, with no need of G itself.
        cross = product([part.dense for part in parts], inputs)
        cross.diagonal().add_(hold)
        T = torch.cholesky_solve(cross.T, root).T
        refitted = weight @ T
        far = None if known.far is None else T.T @ known.far @ T
        moments = replace(known, near=covariance, far=far, near_level=level)
    else:
        target = [part.target for part in parts if part.target is not None]
        cross = product(target, inputs)
        refitted = torch.cholesky_solve((cross + weight * hold).T, root).T
        far = refitted @ covariance @ refitted.T
        moments = replace(known, far=far, far_level=level)
    down, up = decompose(refitted, moments, keep=rank).factors(rank)
    bias = layer.bias
    if bias is not None:  # it makes the mean output that of the target
        sums = [part.target_sum for part in parts if part.target_sum is not None]
        shift = _mean_of(sums, weights) - up @ (down @ _mean(inputs, weights))
        bias = (bias.double() + shift).to(bias.dtype)
    dtype = layer.weight.dtype
    return down.to(dtype), up.to(dtype), bias


def _mean(parts: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Weighted mean of the rows, in float64."""
    pairs = zip(parts, weights, strict=True)
    return _mean_of([(w @ part).double() for part, w in pairs], weights)


def _mean_of(sums: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The mean of rows whose weighted sums these are."""
    return processes.total(torch.stack(list(sums)).sum(0)) / _weight(weights)


def _product(
    a: Sequence[Tensor], b: Sequence[Tensor], weights: Sequence[Tensor], *, centred: bool
) -> Tensor:
    """Weighted mean of a bᵀ, about the means where it is centred, [width of a, width of b], in
    float64."""
    total = a[0].new_zeros(a[0].shape[1], b[0].shape[1])
    mean_a = _mean(a, weights).float() if centred else total.new_zeros(total.shape[0])
    mean_b = _mean(b, weights).float() if centred else total.new_zeros(total.shape[1])
    scale_a, scale_b = (min(processes.all_gather(safe_scale(*parts))) for parts in (a, b))
    for left, right, w in zip(a, b, weights, strict=True):
        weighted = scaled(left - mean_a, scale_a).mul_(w[:, None])
        right = scaled(right - mean_b, scale_b)
        if a is b:
            add_gram(total, weighted, right)
        else:
            total.addmm_(weighted.T, right)
    if a is b:
        mirrored(total)
    return processes.total(total.double()) / (scale_a * scale_b * _weight(weights))


def _weight(weights: Sequence[Tensor]) -> float:
    """The tokens' weights together, over all processes."""
    return processes.total(sum(float(w.sum(dtype=torch.float64)) for w in weights))
