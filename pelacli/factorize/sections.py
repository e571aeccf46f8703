"""A model as a plain sequence: what comes before its blocks, the blocks, and what comes after.

Then calibration and correction can take one section after the other, with the hidden states
between them on disk, and need the activations of one block at a time.

A block is known by its name alone. What it is called with beside the states (masks, tables of
positions) is what the model's own forward gives it: that runs with stand-ins for the blocks, which
pass the states on as they are. Whether a model is such a sequence is not read off its class but
tried: walking the sections must give what the model gives.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.factorize.batches import pieces, samples_in
from pelacli.factorize.block_call import BlockCall, NotASequenceError, states_of
from pelacli.lowrank.calls import LinearCalls, evaluating
from pelacli.lowrank.forwards import replace_forwards, restore_forwards
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.replace import Parts, replaced
from pelacli.system import devices

_PROBE = 2  # samples that the sections are tried on

# (a block's name) → the time in which it has its values
Fill = Callable[[str], AbstractContextManager[None]]
# (the model, a batch) → its output
Run = Callable[[nn.Module, Any], Tensor]


class _ReachedError(BaseException):
    """The pass has come to the last block, and what comes after it is not wanted. No error of the
    model, so whoever catches those lets it pass."""


@dataclass
class _Pass:
    """One pass of the model's own forward with stand-ins for the blocks.

    Attributes:
        last: what the last block gives; None ends the pass there.
        first: what the first block is given.
        calls: of the blocks so far.
        given: what the latest block has given.
    """

    last: Tensor | None
    first: Tensor | None = None
    calls: list[BlockCall] = field(default_factory=list)
    given: Tensor | None = None

    def enter(self, number: int, of: int, args: Any, kwargs: Any) -> Tensor:
        """A block's stand-in is called: what it gives."""
        states, call = BlockCall.split(args, kwargs)
        if number != len(self.calls) or (number and states is not self.given):
            raise NotASequenceError
        if number == 0:
            self.first = states
        self.calls.append(call)
        if number < of - 1:
            self.given = states.view_as(states)
        elif self.last is None:
            raise _ReachedError
        else:
            self.given = self.last.view_as(self.last)
        return self.given


class Sections:
    """A model's sections: 0 is what comes before the blocks, then the blocks, then the rest.

    Attributes:
        module: the whole model.
        layers: section → the layers in it.
        all_layers: those of all sections, in the order in which they were given.
        device: where a block computes while it is at work (`at_work`); None: where it is. The
            states come from the CPU, and the rest of the model stays there.
        fill: of a lazily opened model: (a block's name) → the time in which the block has its
            values; None where the model holds them all. The rest has them all the time.
    """

    def __init__(
        self,
        module: nn.Module,
        blocks: Sequence[str],
        run: Run,
        layers: Sequence[Layer],
        device: torch.device | None = None,
        fill: Fill | None = None,
    ) -> None:
        """Args: as of `sections`.

        Raises:
            NotASequenceError: the blocks can't be stood in for.
        """
        self.module, self._run = module, run
        self._names = list(blocks)
        self._blocks = [module.get_submodule(name) for name in blocks]
        # What a block gives beside the states, if that is a tuple; nobody may need it.
        self._others: list[int | None] = [None] * len(blocks)
        self._local = threading.local()
        self._lock, self._passes = threading.Lock(), 0
        self._calls: dict[int, list[BlockCall]] = {}
        self.layers: list[list[Layer]] = [[] for _ in range(len(blocks) + 2)]
        self.all_layers = list(layers)
        self.device, self.fill = device, fill

    def __len__(self) -> int:
        return len(self._blocks) + 2

    def run(self, section: int, number: int, batch: Any, states: Tensor | None) -> Tensor:
        """What a section gives: the states for the next one, or the model's output.

        Args:
            number: of the batch; what the blocks are called with beside the states is remembered
                by it, so the batch must have been prepared.
            states: that the section gets; None for the first, which gets the batch itself.
        """
        if states is None:
            return self._front(batch)
        if section == len(self) - 1:
            output = self._pass(batch, states)[1]
            assert output is not None
            return output
        call, block = self._calls[number][section - 1], self._blocks[section - 1]
        if self.device is not None:
            call, states = call.to(self.device), states.to(self.device)
        # A view is the result of a call, by which a residual stream can be known again.
        return call(block, states.view_as(states))

    def for_other_batches(self) -> Sections:
        """The same sections, to be prepared for batches that are numbered anew."""
        other = copy.copy(self)
        other._calls = {}
        return other

    @contextmanager
    def at_work(self, section: int, factors: Mapping[str, Parts] | None = None) -> Iterator[None]:
        """Keep the section's block filled and on the device for the time of the block of code.

        Args:
            factors: of the layers that are low-rank meanwhile; only this section's are read.
        """
        with ExitStack() as stack:
            if 0 < section < len(self) - 1:
                name, block = self._names[section - 1], self._blocks[section - 1]
                if self.fill is not None:
                    stack.enter_context(self.fill(name))
                if self.device is not None:
                    stack.enter_context(devices.placed(block, self.device))
            if factors is not None:
                names = [la.name for la in self.layers[section] if la.name in factors]
                own = {name: factors[name] for name in names}
                stack.enter_context(replaced(self.module, own))
            yield

    @torch.no_grad()
    def prepare(self, batches: Sequence[Any]) -> None:
        """Find out what the blocks are called with in these batches, which are numbered so."""
        for number, batch in enumerate(batches):
            if number not in self._calls:
                self._calls[number] = self._pass(batch, None)[0].calls

    def _front(self, batch: Any) -> Tensor:
        first = self._pass(batch, None)[0].first
        assert first is not None
        return first

    def _pass(self, batch: Any, last: Tensor | None) -> tuple[_Pass, Tensor | None]:
        one = self._local.one = _Pass(last)
        with self._standing_in():
            try:
                return one, self._run(self.module, batch)
            except _ReachedError:
                return one, None

    @contextmanager
    def _standing_in(self) -> Iterator[None]:
        """While active, the blocks' own forwards don't run. Passes of several threads may be under
        way together, each with a batch of its own."""
        with self._lock:
            self._passes += 1
            if self._passes == 1:
                self._own = replace_forwards(self._blocks, self._stand_in)
        try:
            yield
        finally:
            with self._lock:
                self._passes -= 1
                if self._passes == 0:
                    restore_forwards(self._blocks, self._own)

    def _stand_in(self, number: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            given = self._local.one.enter(number, len(self._blocks), args, kwargs)
            others = self._others[number]
            return given if others is None else (given, *[None] * others)

        return forward

    def check(self, batch: Any) -> None:
        """Try the sections on a few samples, and find out which layers lie in which.

        Raises:
            NotASequenceError: they don't give what the model gives, or gradients would be lost.
        """
        sections_of = self._observe(batch)
        for layer in self.all_layers:
            # What ran nowhere is the head's, which ``run`` may leave out.
            at = sections_of.get(layer.name, {len(self) - 1})
            if len(at) != 1:
                raise NotASequenceError
            self.layers[next(iter(at))].append(layer)
        with torch.no_grad():
            self.prepare([batch])
            states, output = batch, self._front(batch)
            for section in range(1, len(self)):
                with self.at_work(section):
                    states, output = output, self.run(section, 0, batch, output)
        tolerance = 1e-5 * float(self._expected.abs().max())
        same = output.shape == self._expected.shape
        if not same or not torch.allclose(output, self._expected, 1e-4, tolerance, equal_nan=True):
            raise NotASequenceError
        self._check_gradients(batch, states)
        del self._calls[0], self._expected

    @torch.no_grad()
    def _observe(self, batch: Any) -> dict[str, set[int]]:
        """Run the model as it is: layer → the sections in which it runs."""
        sections_of: dict[str, set[int]] = {}
        own = [block.forward for block in self._blocks]
        order: list[int] = []
        at, previous = 0, None

        def note(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            sections_of.setdefault(layer.name, set()).add(at)
            return F.linear(x, weight, bias)

        def watched(number: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                nonlocal at, previous
                states = BlockCall.split(args, kwargs)[0]
                if previous is not None and states is not previous:
                    raise NotASequenceError
                order.append(number)
                at = number + 1
                # A block that is filled has other weights than before.
                with self.at_work(number + 1), LinearCalls(self.all_layers, note):
                    output = own[number](*args, **kwargs)
                previous = states_of(output)
                self._others[number] = len(output) - 1 if type(output) is tuple else None
                at = len(self) - 1 if number + 1 == len(self._blocks) else -1
                return output

            return forward

        before = replace_forwards(self._blocks, watched)
        try:
            with LinearCalls(self.all_layers, note):
                self._expected = self._run(self.module, batch)
        finally:
            restore_forwards(self._blocks, before)
        if order != list(range(len(self._blocks))) or {-1} in sections_of.values():
            raise NotASequenceError
        return sections_of

    def _check_gradients(self, batch: Any, states: Tensor) -> None:
        """Layers before the blocks must be felt through the first block's states alone: not past
        the blocks, and not through what else the blocks get."""
        if not self.layers[0]:
            return
        outputs: list[Tensor] = []

        def apply(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            outputs.append(F.linear(x.detach().requires_grad_(), weight, bias))
            return outputs[-1]

        with torch.enable_grad(), LinearCalls(self.layers[0], apply):
            one, output = self._pass(batch, states.detach().requires_grad_())
        assert output is not None
        if any(tensor.requires_grad for call in one.calls for tensor in call.tensors()):
            raise NotASequenceError
        felt = torch.autograd.grad(output.float().sum(), outputs, allow_unused=True)
        if any(gradient is not None for gradient in felt):
            raise NotASequenceError


def sections(
    module: nn.Module,
    blocks: Sequence[str],
    run: Run,
    layers: Sequence[Layer],
    batch: Any,
    device: torch.device | None = None,
    fill: Fill | None = None,
) -> Sections | None:
    """The model's sections; None where it is no plain sequence of its blocks.

    Args:
        blocks: names of the repeated blocks, in the order in which they run.
        run: (the model, a batch) → its main output, or a language model's hidden states.
        layers: those that may be factorised.
        batch: what ``run`` takes; the first samples of it are tried.
        device: where each block computes; unset: where it is.
        fill: of a lazily opened model, as in `Sections`.
    """
    if not blocks:
        return None
    few = pieces(batch, samples_in(batch), _PROBE)[0]
    flags = [parameter.requires_grad for parameter in module.parameters()]
    module.requires_grad_(False)
    try:
        made = Sections(module, blocks, run, layers, fill=fill)
        with evaluating(module):
            made.check(few)
        made.device = device
    except Exception:  # a block that is called in another way raises whatever its code raises
        return None
    finally:
        for parameter, flag in zip(module.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    return made
