"""Batches go through a model, forward and back, while somebody looks on at its layers.

What is propagated back is what `pelacli.factorize.sensitivity` draws. The model's weights want no
gradients meanwhile, and none of its layers changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pelacli.factorize.observation import FLOOR, ObservedLinear, SeenCall
from pelacli.factorize.sensitivity import Head, projection, sampled_tokens
from pelacli.lowrank.calls import LinearCalls, evaluating
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.padding import padding_mask, unpadded
from pelacli.system import processes

# Backward passes per batch: each lowers the noise of the draws, at a price above a forward pass.
DRAWS = 2


@dataclass(frozen=True)
class Passes:
    """How calibration passes over the samples.

    Attributes:
        gradients: also collect output-gradient moments; else only inputs count.
        draws: of what is propagated back for each batch: see `pelacli.factorize.sensitivity`.
        floor: the least weight of a token in its inputs' moments, where the mean is 1; at 1 all
            tokens weigh the same.
        seed: of the random signs, or of the sampled tokens.
    """

    gradients: bool = True
    draws: int = DRAWS
    floor: float = FLOOR
    seed: int = 0


class Observer(Protocol):
    """What looks on while batches go through layers, forward and back."""

    def watch(self, number: int, batch: Any) -> LinearCalls:
        """For the time of a batch's forward pass.

        Args:
            number: of the batch among those of this process.
        """
        ...

    def finish(self) -> None:
        """The batch has been propagated back."""
        ...


def observe(
    module: nn.Module,
    batches: Iterable[Any],
    predict: Callable[[nn.Module, Any], Tensor],
    passes: Passes,
    observer: Observer,
    *,
    head: Head | None = None,
    advance: Callable[[int], None] = lambda samples: None,
) -> int:
    """Let the batches go through the module, forward and back, under an observer's eyes.

    The arguments are those of `pelacli.factorize.calibration.collect`.

    Returns:
        How many samples there were, in all processes.
    """
    rank, size = processes.rank_and_size()
    samples = 0
    with frozen(module):
        for number, batch in enumerate(batches):
            if head is None:
                output = partial(predict, module, batch)
            else:
                output = partial(head.hidden, batch)
            generator = draws_of(passes, number * size + rank)
            seen = observer.watch(number, batch)
            count = propagate(module, batch, output, head, seen, passes, generator)
            observer.finish()
            samples += count
            advance(count)
    return processes.total(samples)


def draws_of(passes: Passes, number: int) -> torch.Generator:
    """What the draws of one batch come from: the same, whichever process the batch falls to.

    Args:
        number: of the batch among those of all processes.
    """
    # torch's generator takes 32 bits of a seed; the golden ratio's spread the batches over them.
    return torch.Generator().manual_seed((passes.seed + number * 0x9E3779B1) % 2**32)


def observed(
    layers: Sequence[Layer], call_of: Callable[[Layer, Tensor], SeenCall], gradients: bool
) -> LinearCalls:
    """Send each call of a layer through `ObservedLinear`.

    Args:
        call_of: (layer, its weight [out, in]) → what is shown this call.
        gradients: whether anything is propagated back.
    """

    def apply(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if gradients and not x.requires_grad:
            # All weights are frozen, so the first layers on the way must ask for gradients.
            x = x.detach().requires_grad_()
        y: Tensor = ObservedLinear.apply(x, weight, bias, call_of(layer, weight))
        return y

    return LinearCalls(layers, apply)


def propagate(
    module: nn.Module,
    batch: Any,
    forward: Callable[[], Tensor],
    head: Head | None,
    seen: LinearCalls,
    passes: Passes,
    generator: torch.Generator,
) -> int:
    """One forward pass, and a backward pass for each draw. Gives the number of samples.

    Args:
        forward: gives the module's output for the batch, or a language model's states.
    """
    mask = padding_mask(batch)
    with evaluating(module), torch.set_grad_enabled(passes.gradients):
        with seen:
            output = forward()
        rows = unpadded(output, mask)
        if head is not None:
            with seen:
                draws = passes.draws if passes.gradients else 0
                gradients = sampled_tokens(head, rows.flatten(0, -2), draws, generator)
        for number in range(passes.draws) if output.requires_grad else ():
            again = number + 1 < passes.draws
            if head is None:
                torch.autograd.backward(projection(rows, generator), retain_graph=again)
            else:
                gradient = gradients[number].view_as(rows)
                torch.autograd.backward(rows, gradient, retain_graph=again)
    return len(output)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No parameter wants gradients for the time of the block."""
    flags = [parameter.requires_grad for parameter in module.parameters()]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(module.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
