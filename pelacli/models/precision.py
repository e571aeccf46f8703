"""Weights in half precision: computed with in float32, and stored as they came.

A checkpoint of half precision shall stay half as large as one of float32. Sums over thousands of
tokens and small steps are lost in it, though, so what is computed with it is a copy in float32,
which holds the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.lowrank.pivoting import Pivots
from pelacli.lowrank.replace import Parts
from pelacli.models.opened import OpenModel

HALF = (torch.float16, torch.bfloat16)
# What a low-rank layer calls its tensors → what the dense one calls those that they stand for.
_FACTORS = {
    ".down.weight": ".weight", ".up.weight": ".weight", ".down.bias": ".bias", ".up.bias": ".bias",
}  # fmt: skip


def in_float32(opened: OpenModel) -> None:
    """Make float32 of what is in half precision, in place, and note what it is stored as."""
    state = opened.module.state_dict(keep_vars=True)
    opened.stored |= {name: tensor.dtype for name, tensor in state.items() if tensor.dtype in HALF}
    if opened.weights is not None:  # what is read becomes float32 then: `pelacli.models.filling`
        return
    for module in opened.module.modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.dtype in HALF:
                parameter.data = parameter.data.float()
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.dtype in HALF:
                module._buffers[name] = buffer.float()


def as_in_file(opened: OpenModel) -> None:
    """Undo `in_float32`, in place: what was in half precision is in it again."""
    for name, tensor in opened.module.state_dict(keep_vars=True).items():
        tensor.data = as_stored(name, tensor.data, opened.stored)
    opened.stored = {}


def ready_to_run(opened: OpenModel) -> None:
    """`in_float32`, but for models of transformers, which take inputs of any precision."""
    if opened.library != "transformers":
        in_float32(opened)


@contextmanager
def float32_meanwhile(opened: OpenModel) -> Iterator[None]:
    """`in_float32` for the time of the block; then everything is of the type that it was, and new
    factors of that of their weight."""
    before = dict(opened.stored)
    in_float32(opened)
    try:
        yield
    finally:
        for name, tensor in opened.module.state_dict(keep_vars=True).items():
            if name not in before:
                tensor.data = as_stored(name, tensor.data, opened.stored)
        opened.stored = before


def batch_in_float32(batch: Any) -> Any:
    """A batch (tensors in nested dicts and lists), what is in half precision in float32."""
    if isinstance(batch, Tensor):
        return batch.float() if batch.dtype in HALF else batch
    if isinstance(batch, Mapping):
        return {name: batch_in_float32(value) for name, value in batch.items()}
    return [batch_in_float32(value) for value in batch] if isinstance(batch, list) else batch


def as_stored(name: str, tensor: Tensor, stored: Mapping[str, torch.dtype]) -> Tensor:
    """A tensor of the module's state in the type that it is stored as. Factors are stored as the
    weight was that they stand for.

    Args:
        stored: of `OpenModel`.

    Returns:
        The tensor itself where it is not in float32, or holds numbers that the type can't.
    """
    dense = name
    for factor, own in _FACTORS.items():
        if name.endswith(factor):
            dense = name.removesuffix(factor) + own
    kind = stored.get(name, stored.get(dense))
    if kind is None or tensor.dtype != torch.float32:  # the user has chosen another type since
        return tensor
    as_it_came = tensor.to(kind)
    fits = as_it_came.isfinite().all() or not tensor.isfinite().all()
    return as_it_came if fits else tensor  # what fp16 has no number for stays in float32


def rounded(opened: OpenModel, factors: Mapping[str, Parts]) -> dict[str, Parts]:
    """Low-rank layers as they will be read back: rounded to what they are stored as, and still of
    the type that they are computed in."""

    def once(name: str, tensor: Tensor) -> Tensor:
        return as_stored(name, tensor, opened.stored).to(tensor.dtype)

    def all_of(name: str, known: Parts) -> Parts:
        if isinstance(known, Pivots):
            biases = {"down": known.down_bias, "up": known.up_bias}
            down_bias, up_bias = (
                None if value is None else once(f"{name}.{part}.bias", value)
                for part, value in biases.items()
            )
            return replace(
                known,
                down=once(f"{name}.down.weight", known.down),
                up=once(f"{name}.up.weight", known.up),
                down_bias=down_bias,
                up_bias=up_bias,
            )
        down, up, bias = known
        return (
            once(f"{name}.down.weight", down),
            once(f"{name}.up.weight", up),
            None if bias is None else once(f"{name}.up.bias", bias),
        )

    return {name: all_of(name, known) for name, known in factors.items()}


def carry_over(before: OpenModel, after: OpenModel) -> None:
    """Note for a model what its tensors are stored as, of those that it has from another one,
    perhaps under other names."""
    state = before.module.state_dict(keep_vars=True)
    kinds = {id(state[name]): kind for name, kind in before.stored.items() if name in state}
    for name, tensor in after.module.state_dict(keep_vars=True).items():
        if id(tensor) in kinds:
            after.stored[name] = kinds[id(tensor)]


def like(module: nn.Module, kinds: Mapping[str, torch.dtype]) -> None:
    """Give a module's floating tensors the types that a file stores them as, in place.

    Args:
        kinds: name in the file → type. What the file calls otherwise gets the type of all others,
            if that is one.
    """
    floating = {kind for kind in kinds.values() if kind.is_floating_point}
    other = floating.pop() if len(floating) == 1 else None
    for prefix, part in module.named_modules():
        for slots in (part._parameters, part._buffers):
            for name, tensor in slots.items():
                if tensor is None or not tensor.is_floating_point():
                    continue
                kind = kinds.get(f"{prefix}.{name}" if prefix else name, other)
                if kind in HALF:
                    tensor.data = tensor.data.to(kind)
