"""Correction with few samples in the model at a time, so that memory does not grow with them.

`pelacli.factorize.refit` has all samples stand before a layer. Here they come in waves: each wave
runs up to the first layer that is not refitted yet, adds what it gives to the sums of that layer,
and is given up. When all waves have been, the layer is refitted, and they start again. Layers that
read the very same input (q, k and v) are refitted together. So the samples pass the model as often
as it has different inputs, a Llama's block two and a half times where it was once; that is cheap
for a block, whose states lie on disk, and not for a whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.factorize.moments import Moments
from pelacli.factorize.refit import PAYBACK, RIDGE, add_batch, cut_calls, streams
from pelacli.factorize.regression import Regression
from pelacli.lowrank.calls import evaluating
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.replace import Factors


class DifferentWaysError(Exception):
    """The samples take different ways, so no layer is the next one for all of them."""


@dataclass
class Wave:
    """Batches that are in the model together.

    Attributes:
        numbers: of the batches, by which their tokens' weights are known.
        dense, compressed: what ``predict`` takes, in the two streams.
        masks: of their tokens.
    """

    numbers: Sequence[int]
    dense: Sequence[Any]
    compressed: Sequence[Any]
    masks: Sequence[Tensor | None]


def correct(
    module: nn.Module,
    layers: Sequence[Layer],
    ranks: Mapping[str, int],
    moments: Mapping[str, Moments],
    waves: Callable[[], Iterable[Wave]],
    predict: Callable[[nn.Module, Any], Any],
    *,
    ridge: float = RIDGE,
    payback: float = PAYBACK,
) -> dict[str, Factors]:
    """Factors as `refit.correct` gives them, by one process.

    Args:
        waves: gives the same batches, in waves, each time that it is called. In the last time all
            of the compressed ones come out of ``predict``.

    Raises:
        DifferentWaysError: it can't be done so.
    """
    correction = _Correction(
        module, [layer for layer in layers if layer.name in ranks], moments, predict, payback
    )
    factors = correction.factors
    with evaluating(module):
        while True:
            sums: dict[str, Regression] = {}
            first: list[str] | None = None
            for wave in waves():
                added = correction.add(wave, sums)
                if added != (added if first is None else first):
                    raise DifferentWaysError
                first = added
            if not sums:
                return factors
            for name in list(sums):
                factors[name] = sums.pop(name).factors(ranks[name], ridge)


@dataclass
class _Correction:
    """Attributes: as of `correct`; factors: of the layers that are refitted."""

    module: nn.Module
    planned: Sequence[Layer]
    moments: Mapping[str, Moments]
    predict: Callable[[nn.Module, Any], Any]
    payback: float
    factors: dict[str, Factors] = field(default_factory=dict)

    def add(self, wave: Wave, sums: dict[str, Regression]) -> list[str]:
        """Run a wave to the next layers that are not refitted, and add to their sums.

        Returns:
            Their names; none where the wave has come to the end.
        """
        added: list[str] = []
        inputs: dict[int, tuple[Tensor, int]] = {}
        with streams(self.module, self.planned, wave.dense, wave.compressed, self.predict) as (
            dense,
            stops,
        ):
            for calls in stops:
                if len(calls) < len(wave.numbers):
                    raise DifferentWaysError
                layer = calls[0].layer
                if layer.name in self.factors:
                    cut_calls(calls, self.factors[layer.name])
                    continue
                passages = dense.passages(layer.name, self.factors)
                if added and not (
                    all(_same(call.x, *inputs[call.walker]) for call in calls)
                    and all(passage.sum is None for passage in passages.values())
                ):
                    break  # what is here depends on the layers before
                inputs = {call.walker: (call.x, call.x._version) for call in calls}
                if layer.name in added:
                    break
                added.append(layer.name)
                if layer.name not in sums:
                    known = self.moments.get(layer.name, Moments()).to(layer.weight.device)
                    sums[layer.name] = Regression(layer, known)
                for call in calls:
                    number = wave.numbers[call.walker]
                    passage, mask = passages.get(call.walker), wave.masks[call.walker]
                    add_batch(sums[layer.name], call, passage, number, mask, self.payback)
                    # What it gives is not used: the layers that follow read the same input.
                    call.apply = partial(F.linear, weight=call.weight, bias=call.bias)
        return added


def _same(x: Tensor, before: Tensor, version: int) -> bool:
    """Whether this is the very tensor from before, and nothing was written into it since."""
    return x is before and x._version == version
