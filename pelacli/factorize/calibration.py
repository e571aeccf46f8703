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
from typing import Any

from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.factorize.moments import Moments, narrow_in
from pelacli.factorize.observation import LayerSums, ObservedCall
from pelacli.factorize.passes import Passes, observe, observed
from pelacli.factorize.sensitivity import Head
from pelacli.factorize.spilled_sums import SpilledSums
from pelacli.lowrank.calls import LinearCalls
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.padding import padding_mask
from pelacli.system import devices, processes


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
    observer = MomentSums(layers, passes)
    samples = observe(module, batches, predict, passes, observer, head=head, advance=advance)
    if not samples:
        raise RequestError("calibration: there are no samples; give at least one batch")
    sums = observer.sums
    _add_others(sums)
    known = levels(layers, sums, samples * passes.draws)
    _check_finite(SummedMoments(layers, sums, known, samples, passes.draws))
    return SummedMoments(layers, SpilledSums(sums), known, samples, passes.draws)


class MomentSums:
    """The observer that sums up the moments of layers.

    Attributes:
        sums: layer → what its calls have added.
    """

    def __init__(self, layers: Sequence[Layer], passes: Passes) -> None:
        self.sums = {layer.name: LayerSums(narrow_in(layer.shape)) for layer in layers}
        self._layers, self._passes = layers, passes
        self._calls: list[ObservedCall] = []

    def watch(self, number: int, batch: Any) -> LinearCalls:
        """See `Observer`."""
        self._calls = []
        mask = padding_mask(batch)
        mask = None if mask is None else mask.bool()

        def call_of(layer: Layer, weight: Tensor) -> ObservedCall:
            self._calls.append(ObservedCall(self.sums[layer.name], number, mask))
            return self._calls[-1]

        return observed(self._layers, call_of, self._passes.gradients)

    def finish(self) -> None:
        """See `Observer`."""
        for call in self._calls:
            call.finish(self._passes.floor)


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
