"""Forward and backward passes over a few hundred unlabelled samples → the layers' moments.

One forward pass gives the mean and covariance of every layer's inputs. Backward passes of what
`pelacli.factorize.sensitivity` draws give the second moment of the gradients at every layer's
output.

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
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.factorize.moments import Moments, narrow_in
from pelacli.factorize.observation import FLOOR, LayerSums, ObservedCall, ObservedLinear
from pelacli.factorize.sensitivity import Head, projection, sampled_tokens
from pelacli.factorize.spilled_sums import SpilledSums
from pelacli.lowrank.calls import LinearCalls, evaluating
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.padding import padding_mask, unpadded
from pelacli.system import devices, processes

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


def collect(
    module: nn.Module,
    layers: Iterable[Layer],
    batches: Iterable[Any],
    predict: Callable[[nn.Module, Any], Tensor],
    passes: Passes | None = None,
    *,
    head: Head | None = None,
    advance: Callable[[int], None] = lambda samples: None,
) -> Mapping[str, Moments]:
    """Moments of the layers over the batches, and over those of the other processes.

    Args:
        batches: this process's share (`pelacli.factorize.batches.share`). Each is what ``predict``
            takes: a tensor [B, ...], or a dict of tensors [B, ...] whose ``attention_mask``, if
            any, marks the padding.
        predict: (module, batch) → the model's main output, [B, ...].
        head: of a language model; what its output feels is then measured by sampled tokens.
        advance: called after each batch with its number of samples.

    Returns:
        layer name → moments, made of the sums each time that they are asked for; a layer that no
        batch reached is missing.

    Raises:
        RequestError: no batches, or values that are not finite.
    """
    passes = passes or Passes()
    layers = [layer for layer in layers if layer.reason is None]
    sums = {layer.name: LayerSums(narrow_in(layer.shape)) for layer in layers}
    rank, size = processes.rank_and_size()
    samples = 0
    with frozen(module):
        for number, batch in enumerate(batches):
            calls: list[ObservedCall] = []
            seen = watch(layers, sums, calls, number, batch, passes.gradients)
            if head is None:
                output = partial(predict, module, batch)
            else:
                output = partial(head.hidden, batch)
            generator = draws_of(passes, number * size + rank)
            count = propagate(module, batch, output, head, seen, passes, generator)
            for call in calls:
                call.finish(passes.floor)
            samples += count
            advance(count)
    samples = processes.total(samples)
    if not samples:
        raise RequestError("calibration: there are no samples; give at least one batch")
    _add_others(sums)
    known = levels(layers, sums, samples * passes.draws)
    _check_finite(SummedMoments(layers, sums, known, samples, passes.draws))
    return SummedMoments(layers, SpilledSums(sums), known, samples, passes.draws)


def draws_of(passes: Passes, number: int) -> torch.Generator:
    """What the draws of one batch come from: the same, whichever process the batch falls to.

    Args:
        number: of the batch among those of all processes.
    """
    # torch's generator takes 32 bits of a seed; the golden ratio's spread the batches over them.
    return torch.Generator().manual_seed((passes.seed + number * 0x9E3779B1) % 2**32)


def _add_others(sums: Mapping[str, LayerSums]) -> None:
    """Make the sums those over the batches of all processes, the same bits in each of them."""
    if processes.rank_and_size()[1] == 1:
        return
    for known in sums.values():
        device = None if known.gram is None else known.gram.device
        mine = {key: value for key, value in vars(known).items() if key != "weights"}
        gathered = processes.all_gather(devices.move_batch(mine, "cpu"))
        first, *others = (LayerSums(**one) for one in gathered)
        for other in others:
            first.add(other)
        whole = {key: value for key, value in vars(first).items() if key != "weights"}
        vars(known).update(whole if device is None else devices.move_batch(whole, device))


def watch(
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


def propagate(
    module: nn.Module,
    batch: Any,
    forward: Callable[[], Tensor],
    head: Head | None,
    watch: LinearCalls,
    passes: Passes,
    generator: torch.Generator,
) -> int:
    """One forward pass, and a backward pass for each draw. Gives the number of samples.

    Args:
        forward: gives the module's output for the batch, or a language model's states.
    """
    mask = padding_mask(batch)
    with evaluating(module), torch.set_grad_enabled(passes.gradients):
        with watch:
            output = forward()
        rows = unpadded(output, mask)
        if head is not None:
            with watch:
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


class SummedMoments(Mapping[str, Moments]):
    """The moments of the layers that ran, each made when it is asked for: they are in float64, and
    all of them at once would be four times as large as the sums.

    What the output does not depend on here (a pooler beside the mean of the tokens) may be what
    another head reads: it counts as if its gradients were of the others' median size.

    Args:
        levels: of the layers that ran, the mean diagonal of G per sample; None where no gradient
            came.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        sums: Mapping[str, LayerSums],
        levels: Mapping[str, float | None],
        samples: int,
        draws: int,
    ) -> None:
        self._shapes = {
            layer.name: (layer.shape, layer.bias is not None)
            for layer in layers
            if layer.name in levels
        }
        self._sums, self._samples, self._draws = sums, samples, draws
        felt = [level for level in levels.values() if level is not None]
        self._level = statistics.median(felt) if felt else None

    def __getitem__(self, name: str) -> Moments:
        shape, has_bias = self._shapes[name]
        return self._sums[name].moments(
            self._samples, self._draws, shape, self._level, centred=has_bias
        )

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def levels(
    layers: Iterable[Layer], sums: Mapping[str, LayerSums], passes: int
) -> dict[str, float | None]:
    """Of the layers that ran, the mean diagonal of G per sample; None where no gradient came.

    Args:
        passes: samples × draws.
    """
    return {
        layer.name: None
        if sums[layer.name].gradient_square is None
        else sums[layer.name].output_level(passes, layer.shape[0])
        for layer in layers
        if sums[layer.name].tokens
    }


def _check_finite(moments: Mapping[str, Moments]) -> None:
    for name, known in moments.items():
        check_finite(name, known.near, known.far)


def check_finite(name: str, *matrices: Tensor | None) -> None:
    """Refuse a layer's matrices that hold NaN or infinity.

    Raises:
        RequestError: it names the layer.
    """
    for matrix in matrices:
        if matrix is not None and not matrix.isfinite().all():
            raise RequestError(
                f"calibration: {name} sees values that are not finite; "
                "check the samples and the weights"
            )
