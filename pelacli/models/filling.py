"""Values for a lazily opened model's parameters, for as long as a part of it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.lowrank.forwards import replace_forwards, restore_forwards
from pelacli.models.on_disk import Weights, constant
from pelacli.models.precision import HALF, batch_in_float32


@contextmanager
def filled(module: nn.Module, weights: Weights, wanted: Callable[[str], bool]) -> Iterator[None]:
    """While active, parameters on "meta" have their values, and what is in half precision is in
    float32, buffers too. Afterwards all is as before.

    Args:
        wanted: says of a tensor's name in the module's state whether it is filled.

    Raises:
        RequestError: a file is damaged, or holds what is not finite.
    """
    replaced: list[_Slot] = []
    values: dict[int, nn.Parameter] = {}  # a tied one has one value
    try:
        for slot in [*_slots(module)]:
            if not wanted(slot.name):
                continue
            old = slot.tensor
            if old.is_meta:
                if id(old) not in values:
                    value = batch_in_float32(weights.read(slot.name))
                    values[id(old)] = nn.Parameter(value, old.requires_grad)
                slot.put(values[id(old)])
            elif old.dtype in HALF and not isinstance(old, nn.Parameter):
                slot.put(old.float())
            else:
                continue
            replaced.append(slot)
        yield
    finally:
        for slot in replaced:
            slot.put(slot.tensor)


@dataclass(frozen=True)
class _Slot:
    """Where a module holds a tensor: its parameters or its buffers, and the key in them."""

    name: str
    tensors: dict[str, Any]
    key: str
    tensor: Tensor

    def put(self, tensor: Tensor) -> None:
        self.tensors[self.key] = tensor


def _slots(module: nn.Module) -> Iterator[_Slot]:
    """Every place where the module or a part of it holds a tensor; a tied one has several."""
    for prefix, part in module.named_modules():
        for tensors in (part._parameters, part._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    yield _Slot(f"{prefix}.{key}" if prefix else key, tensors, key, tensor)


def zeros(module: nn.Module) -> AbstractContextManager[None]:
    """`filled` with zeros that take no memory, so that the module can be run for what it does and
    not for its output. In float32, too: in half precision a processor without instructions for it
    takes a hundred times as long."""
    shapes = {slot.name: tuple(slot.tensor.shape) for slot in _slots(module)}
    return filled(module, _Zeros(shapes), lambda tensor: True)


@dataclass(frozen=True)
class _Zeros:
    """Weights that are all 0.

    Attributes:
        shapes: name in the module's state → shape.
    """

    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str) -> Tensor:
        return constant(self.shapes[name], torch.float32)


def block(module: nn.Module, weights: Weights, name: str) -> AbstractContextManager[None]:
    """`filled` of one block."""
    return filled(module, weights, lambda tensor: tensor.startswith(f"{name}."))


def beside(
    module: nn.Module, weights: Weights, blocks: Sequence[str]
) -> AbstractContextManager[None]:
    """`filled` of everything but the blocks."""
    starts = tuple(f"{name}." for name in blocks)
    return filled(module, weights, lambda tensor: not tensor.startswith(starts))


@contextmanager
def in_turn(module: nn.Module, weights: Weights, blocks: Sequence[str]) -> Iterator[None]:
    """While active, each block is filled as it runs, so that the whole module can be run."""
    parts = [module.get_submodule(name) for name in blocks]
    own = [part.forward for part in parts]

    def filling(number: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            with block(module, weights, blocks[number]):
                return own[number](*args, **kwargs)

        return forward

    before = replace_forwards(parts, filling)
    try:
        yield
    finally:
        restore_forwards(parts, before)
