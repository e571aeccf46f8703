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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.factorize.lockstep import Call, lockstep
from pelacli.factorize.moments import Moments
from pelacli.factorize.regression import Regression
from pelacli.factorize.residual import Sum, owed
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
    counts: bool = True,
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
        counts: whether the batches add to the sums of all processes: see
            `pelacli.factorize.batches.Share`.
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
        streams(module, planned, batches, compressed, predict) as (dense, stops),
    ):
        for calls in stops:
            layer = calls[0].layer
            if layer.name not in factors:
                _meet(layer.name)
                known = moments.get(layer.name, Moments()).to(layer.weight.device)
                passages = dense.passages(layer.name, factors)
                sums = Regression(layer, known)
                for call in calls:
                    number, mask = call.walker, masks[call.walker]
                    passage = passages.pop(number, None)
                    add_batch(sums, call, passage, number, mask, payback, counts=counts)
                factors[layer.name] = sums.factors(ranks[layer.name], ridge)
                advance()
            cut_calls(calls, factors[layer.name])
        _meet(None)
    return factors


@contextmanager
def streams(
    module: nn.Module,
    layers: Sequence[Layer],
    dense: Sequence[Any],
    compressed: Sequence[Any],
    predict: Callable[[nn.Module, Any], Any],
) -> Iterator[tuple[DenseStream, Iterator[list[Call]]]]:
    """The dense stream, and the stops of the compressed one."""
    with (
        lockstep(module, layers, dense, predict) as dense_stops,
        lockstep(module, layers, compressed, predict) as stops,
    ):
        yield DenseStream(dense_stops), stops


def cut_calls(calls: list[Call], factors: Factors) -> None:
    """Let the cut layer be applied. The calls are given up: only the walkers hold inputs now."""
    down, up, bias = factors
    while calls:
        call = calls.pop()
        call.apply = partial(_low_rank, down, up, _bias_in_call(call, bias))


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


def _low_rank(down: Tensor, up: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, down), up, bias)


@dataclass(frozen=True)
class Passage:
    """A dense call that is over, and the sum that its output went into, if any."""

    call: Call
    sum: Sum | None


class DenseStream:
    """The dense stream. It is always one layer ahead: only then it knows where an output went."""

    def __init__(self, stops: Iterator[list[Call]]) -> None:
        self._stops = stops
        self._next: list[Call] | None = None
        self._begun = False
        self._passed: dict[str, dict[int, Passage]] = {}

    def passages(self, name: str, refitted: Mapping[str, object]) -> dict[int, Passage]:
        """Number of the batch → its passage through the layer of this name.

        Empty where the dense stream does not come by this layer at all.

        Args:
            refitted: layers that are done; a second passage through one is not kept.
        """
        if not self._begun:
            self._begun, self._next = True, next(self._stops, None)
        while name not in self._passed and self._next is not None:
            calls = self._next
            for call in calls:
                call.apply = partial(F.linear, weight=call.weight, bias=call.bias)
            self._next = next(self._stops, None)
            if calls[0].layer.name not in refitted:
                passed = self._passed.setdefault(calls[0].layer.name, {})
                passed |= {call.walker: Passage(call, call.watch.sum) for call in calls}
        return self._passed.pop(name, {})


def add_batch(
    sums: Regression,
    call: Call,
    passage: Passage | None,
    number: int,
    mask: Tensor | None,
    payback: float,
    *,
    counts: bool = True,
) -> None:
    """Add what one batch gives to the regression of a layer.

    Args:
        passage: of the dense stream; None where it does not come by.
        number: of the batch, by which its tokens' weights are known.
        counts: whether its tokens weigh anything.
    """
    if passage is None or passage.call.x.shape != call.x.shape:
        passage = Passage(call, None)  # the streams went different ways here
    dense, compressed = (token_rows(x, mask) for x in (passage.call.x, call.x))
    weights = sums.known.weights.get(number)
    if weights is None or len(weights) != len(compressed):
        weights = compressed.new_ones(len(compressed))
    if not counts:
        weights = torch.zeros_like(weights)
    sums.add(dense, compressed, weights, partial(_target, call, passage, mask, payback))


def _target(call: Call, passage: Passage, mask: Tensor | None, payback: float) -> Tensor:
    """The output [tokens, out] that the layer should have, without bias."""
    target = F.linear(passage.call.x, call.weight.detach())
    if payback and passage.sum is not None:
        stream = call.watch.output_of(passage.sum.call)
        if stream is not None and stream.shape == passage.sum.stream.shape:
            target = target + payback * owed(passage.sum, stream, target)
    return token_rows(target, mask)
