"""FLOPs of a model and of each of its layers at a given input, by torch's own counter.

One multiply–add is 2 FLOPs. Convolutions, matrix products and attention are counted, as in
``torch.utils.flop_counter``; norms, activations and softmax are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pelacli.lowrank.calls import LinearCalls, evaluating
from pelacli.lowrank.layer import Layer
from pelacli.ranks import forms
from pelacli.ranks.forms import Form


@dataclass
class Cost:
    """FLOPs of one forward pass for one sample.

    Attributes:
        total: FLOPs of the whole model.
        tokens: layer name → positions the layer is applied to; a layer that the pass never
            applies is missing.
        calls: layer name → how often one pass applies it.
        reads: layer name → what the model does with its weight other than apply it.
    """

    total: int
    tokens: dict[str, int] = field(default_factory=dict)
    reads: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)


def count(
    module: nn.Module, layers: Iterable[Layer], run: Callable[[nn.Module], Any], samples: int = 1
) -> Cost:
    """Count one forward pass.

    Args:
        layers: dense layers of the module whose tokens are wanted.
        run: calls the module once on ``samples`` samples. The tensors may live on "meta".
    """
    tokens: dict[str, int] = {}
    times: dict[str, int] = {}

    def apply(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        tokens[layer.name] = tokens.get(layer.name, 0) + x.numel() // x.shape[-1]
        times[layer.name] = times.get(layer.name, 0) + 1
        return F.linear(x, weight, bias)

    # The fused attention kernels of the CPU have no formula in torch's counter; the plain
    # composition does the same products where the counter sees them.
    with (
        evaluating(module),
        _frozen(module),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
        LinearCalls(layers, apply) as calls,
    ):
        run(module)
    return Cost(
        counter.get_total_flops() // samples,
        {name: n // samples for name, n in tokens.items()},
        calls.reads,
        times,
    )


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """While active, no parameter wants gradients: the counter would hook one that is itself the
    input of a module (DETR's queries), and can't do so where gradients are off."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def layer_flops(
    shape: tuple[int, int], tokens: int, rank: int | None, form: Form | None = None
) -> int:
    """FLOPs of a layer [out, in] at ``tokens`` positions: dense, or low-rank in a form."""
    if rank is None:
        return 2 * tokens * forms.dense_weights(shape)
    return 2 * tokens * forms.weights(shape, rank, form or "factors")
