"""Watch a model apply its linear layers: one mechanism for FLOPs, moments and correction.

Forward hooks miss the models that read ``layer.weight`` and call ``F.linear`` themselves. So the
calls are caught where they all meet: ``F.linear``, ``x @ weight.T``, ``weight @ x``, and
``torch.addmm`` for transformers' Conv1D, told apart by the very weight tensor that is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pelacli.lowrank.layer import Layer
from pelacli.lowrank.weight import (
    MATMULS,
    TRANSPOSES,
    FactoredWeight,
    attention_body,
    linear_arguments,
)

# (layer, input [..., in], weight as out × in, bias [out] or None) → the output to use instead
Apply = Callable[[Layer, Tensor, Tensor, "Tensor | None"], Tensor]


class LinearCalls(TorchFunctionMode):
    """While active, every application of a known layer's weight goes through ``apply``.

    The layers must be dense: their weights are known by identity. Kinds that are not applied by
    ``F.linear``, a product with the transposed weight or ``torch.addmm`` are passed over.

    Attributes:
        reads: layer name → what else was done with its weight, as LayoutLMv3 looks up rows of one.
    """

    def __init__(self, layers: Iterable[Layer], apply: Apply) -> None:
        super().__init__()
        self._layers = {
            id(layer.module.weight): layer for layer in layers if layer.kind in ("linear", "conv1d")
        }
        self._apply = apply
        self.reads: dict[str, str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            x, weight, bias = linear_arguments(args, kwargs)
            if isinstance(weight, FactoredWeight):  # its factors are applied one by one
                with self:
                    return weight.product.linear(x, bias)
            layer = self._layers.get(id(weight))
            if layer is not None and layer.kind == "linear":
                return self._apply(layer, x, weight, bias)
        elif func in MATMULS and not kwargs and len(args) == 2:
            left, right = args
            layer = self._layers.get(id(left))
            if layer is not None and layer.kind == "linear" and right.ndim > 1:
                return self._apply(layer, right.mT, left, None).mT
            whole = _transposed(right)
            layer = self._layers.get(id(whole))
            if whole is not None and layer is not None and layer.kind == "linear":
                return self._apply(layer, left, whole, None)
        elif func is F.multi_head_attention_forward:
            with self:
                return attention_body(*args, **kwargs)
        elif func is torch.addmm and not kwargs and len(args) == 3:
            layer = self._layers.get(id(args[2]))
            if layer is not None and layer.kind == "conv1d":
                return self._apply(layer, args[1], args[2].T, args[0])
        result = func(*args, **kwargs)
        if func not in TRANSPOSES and isinstance(result, Tensor):
            self._note(func, [*args, *kwargs.values()], result)
        return result

    def _note(self, func: Any, arguments: list[Any], result: Tensor) -> None:
        name = getattr(func, "__name__", "")
        for value in arguments if name != "__get__" else ():
            if isinstance(value, Tensor) and value is not result:
                base = value._base
                layer = self._layers.get(id(value)) or self._layers.get(id(base))
                if layer is not None:
                    self.reads[layer.name] = name


def _transposed(view: Any) -> Tensor | None:
    """The matrix that a tensor is the transpose of; None where it is none."""
    base = view._base if isinstance(view, Tensor) else None
    if base is None or view.ndim != 2 or view.data_ptr() != base.data_ptr():
        return None
    same = view.shape == base.shape[::-1] and view.stride() == base.stride()[::-1]
    return base if same else None


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """While active, the module is in eval mode; afterwards each part is as it was.

    A part may have a mode of its own: a frozen batch norm stays in eval mode in training.
    """
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True
