"""How far each layer's output has moved from the dense model's, on samples that nothing was fitted
to.

The passes that judge the whole model are watched: of what a layer gives in the dense pass some
tokens are kept, and the pass of the compressed model is compared with them. No pass is added. The
error of a layer holds what the layers before it have lost as well as its own cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pelacli.lowrank.calls import LinearCalls
from pelacli.lowrank.find import submodule
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.linear import LowRankLinear
from pelacli.lowrank.padding import padding_mask
from pelacli.lowrank.weight import FactoredWeight, linear_arguments
from pelacli.measure.agreement import Difference

# What may be kept of the dense outputs of all layers together, and the tokens that are kept of each
# layer whatever that comes to, and at most.
_BYTES, _FEWEST, _MOST = 1 << 26, 32, 256

# (layer, number of the batch, some tokens' outputs [tokens, out]) → nothing
Take = Callable[[str, int, Tensor], None]


class LayerOutputs:
    """Some tokens' outputs of each layer in the dense model.

    Args:
        layers: of the dense model.
        batches: how many batches there are.
    """

    def __init__(self, layers: Sequence[Layer], batches: int) -> None:
        self._layers = layers
        width = sum(layer.shape[0] for layer in layers)
        tokens = min(_MOST, max(_FEWEST, _BYTES // (4 * max(1, width))))
        self._tokens = -(-tokens // max(1, batches))  # of a batch
        self._kept: dict[tuple[str, int], list[Tensor]] = {}

    def keep(self, name: str, number: int, outputs: Tensor) -> None:
        """Take a layer's outputs in the dense pass."""
        self._kept.setdefault((name, number), []).append(outputs)

    def comparison(self) -> Comparison:
        """To be given the outputs of a compressed model."""
        return Comparison(self._kept)

    @contextmanager
    def watching(
        self,
        module: nn.Module,
        number: int,
        batch: Any,
        take: Take,
        layers: Sequence[Layer] | None = None,
    ) -> Iterator[None]:
        """While active, ``take`` is given the outputs of the layers, at the same tokens in every
        pass of a batch, whether a layer is dense or low-rank now.

        Args:
            layers: those that run meanwhile; unset: all.
        """
        layers = self._layers if layers is None else layers
        mask = padding_mask(batch)

        def note(name: str, outputs: Tensor) -> None:
            take(name, number, _some(outputs, mask, self._tokens, number))

        def apply(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            outputs = F.linear(x, weight, bias)
            note(layer.name, outputs)
            return outputs

        now = {layer.name: submodule(module, layer.name) for layer in layers}
        low = {name: part for name, part in now.items() if isinstance(part, LowRankLinear)}
        with ExitStack() as stack:
            for name, part in low.items():
                hook = part.register_forward_hook(partial(_note_output, note, name))
                stack.callback(hook.remove)
            stack.enter_context(LinearCalls(layers, apply))
            stack.enter_context(_WeightReaders(low, note))
            yield


class Comparison:
    """Running sums of how far a model's layers are from the dense ones."""

    def __init__(self, dense: Mapping[tuple[str, int], Sequence[Tensor]]) -> None:
        self._dense = dense
        self._calls: Counter[tuple[str, int]] = Counter()
        self._differences: dict[str, Difference] = {}
        self._unlike: set[str] = set()

    def add(self, name: str, number: int, outputs: Tensor) -> None:
        """Take a layer's outputs in the compressed model's pass."""
        known = self._dense.get((name, number), ())
        call = self._calls[name, number]
        self._calls[name, number] += 1
        if call >= len(known) or known[call].shape != outputs.shape:
            self._unlike.add(name)  # the passes went different ways
            return
        self._differences.setdefault(name, Difference()).add(outputs, known[call])

    def errors(self) -> dict[str, float]:
        """Layer → its relative error; those that can't be compared are missing."""
        return {
            name: difference.share_lost
            for name, difference in self._differences.items()
            if name not in self._unlike
        }


class _WeightReaders(TorchFunctionMode):
    """Notes the outputs of low-rank layers whose weight the model reads and applies itself."""

    def __init__(
        self, layers: Mapping[str, LowRankLinear], note: Callable[[str, Tensor], None]
    ) -> None:
        super().__init__()
        self._names = {id(layer.up.weight): name for name, layer in layers.items()}
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.linear:
            weight = linear_arguments(args, kwargs or {})[1]
            if isinstance(weight, FactoredWeight):
                name = self._names.get(id(weight.product.sources[0]))
                if name is not None:
                    self._note(name, result)
        return result


def _note_output(
    note: Callable[[str, Tensor], None], name: str, module: nn.Module, args: Any, output: Tensor
) -> None:
    note(name, output)


def _some(outputs: Tensor, mask: Tensor | None, count: int, seed: int) -> Tensor:
    """So many tokens of a layer's outputs [..., out] drawn at random, on the CPU; padding is none.

    Args:
        mask: [B, N], where there are tokens.
    """
    rows = outputs.detach().reshape(-1, outputs.shape[-1])
    known = None
    if mask is not None and mask.numel() == len(rows):  # also of a layer that takes rows alone
        known = mask.flatten().bool().nonzero().flatten().cpu()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(rows) if known is None else len(known), generator=generator)[:count]
    chosen = chosen if known is None else known[chosen]
    return rows[chosen.to(rows.device)].to("cpu", torch.float32)
