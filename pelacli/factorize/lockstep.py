"""Run a model over many batches in lockstep: all stop before a layer, then all go on.

Sequential correction needs every sample's input at one layer before it can cut that layer, and the
cut layer before any sample can go on. Block-wise replay would need to know what a block is. Here
each batch runs through the whole model in a thread of its own, and the threads take turns: one
runs until it is about to apply a watched layer, hands over the call, and waits to be told how.
That works for any architecture, in the order in which its layers really run, at the price of one
forward pass. Only one thread ever runs at a time.

A batch costs a thread, however small it is, so calibration batches are joined first
(`pelacli.factorize.batches`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.factorize.residual import Watch
from pelacli.lowrank.calls import LinearCalls
from pelacli.lowrank.layer import Layer


@dataclass
class Call:
    """A layer is about to be applied, and its walker waits to be told how.

    Attributes:
        walker: number of the batch.
        x: the layer's input, [..., in].
        weight, bias: what the model applies, [out, in] and [out] or None.
        watch: knows, when the walker stops again, where the output went.
        apply: to be filled in by whoever iterates over the stops: makes the output [..., out] of
            the input, when it is the walker's turn.
    """

    walker: int
    layer: Layer
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    watch: Watch
    apply: Callable[[Tensor], Tensor] | None = None


class _Stop(BaseException):
    """Ends a walker's thread from inside a call."""


class _Walker:
    """One batch on its way through the model."""

    def __init__(self, number: int, layers: Sequence[Layer], run: Callable[[], object]) -> None:
        self.call: Call | None = None
        self.watch = Watch()
        self.error: BaseException | None = None
        self._output: Tensor | None = None  # of the call that was
        self.stopping = False
        self._number, self._layers, self._run = number, layers, run
        self._go, self._turn_over = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._body, daemon=True)
        self._thread.start()

    def advance(self) -> None:
        """Run to the next call, or to the end of the model (``call`` is None then)."""
        if self.call is not None:
            # Not in the walker's thread: each thread that multiplies keeps buffers for it.
            assert self.call.apply is not None
            self._output = self.call.apply(self.call.x)
            self.call = None
        self._go.release()
        self._turn_over.acquire()
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """End the thread, wherever it waits."""
        if self._thread.is_alive():
            self.stopping = True
            self._go.release()
            self._thread.join()

    def _body(self) -> None:
        self._go.acquire()
        try:
            if not self.stopping:
                # Grad mode and function modes belong to the thread.
                with torch.no_grad(), LinearCalls(self._layers, self._hand_over), self.watch:
                    self._run()
        except _Stop:
            return
        except BaseException as error:
            self.error = error
        self._turn_over.release()

    def _hand_over(self, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self.call = Call(self._number, layer, x, weight, bias, self.watch)
        self._turn_over.release()
        self._go.acquire()
        if self.stopping:
            raise _Stop
        output, self._output = self._output, None
        assert output is not None
        self.watch.follow(output)
        return output


@contextmanager
def lockstep(
    module: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Any],
    predict: Callable[[nn.Module, Any], Any],
) -> Iterator[Iterator[list[Call]]]:
    """Walk all batches through the model together.

    Args:
        layers: the layers to stop at.
        batches: what ``predict`` takes, one walker each.

    Gives:
        An iterator over the stops. Each is the list of the walkers that are about to apply the
        same layer; whoever iterates must fill in every call's ``apply`` before the next stop. No
        output is made before its walker goes on, since those of all walkers take much memory.
    """
    walkers = [
        _Walker(i, layers, lambda batch=batch: predict(module, batch))  # type: ignore[misc]
        for i, batch in enumerate(batches)
    ]

    def stops() -> Iterator[list[Call]]:
        moving = list(walkers)
        while True:
            for walker in moving:
                walker.advance()
            waiting = [w for w in walkers if w.call is not None]
            if not waiting:
                return
            # A model whose path depends on the data may bring its walkers to different layers;
            # the first one's goes first.
            first = waiting[0].call
            assert first is not None
            moving = [w for w in waiting if w.call and w.call.layer.name == first.layer.name]
            yield [w.call for w in moving if w.call is not None]

    try:
        yield stops()
    finally:
        for walker in walkers:
            walker.stop()
