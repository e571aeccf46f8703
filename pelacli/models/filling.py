"""Values for a lazily opened model's parameters, for as long as a part of it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.models.on_disk import Weights

_HALF = (torch.float16, torch.bfloat16)


@contextmanager
def filled(module: nn.Module, weights: Weights, wanted: Callable[[str], bool]) -> Iterator[None]:
    """While active, parameters on "meta" have their values, and what is in half precision is in
    float32, buffers too. Afterwards all is as before.

    Args:
        wanted: says of a tensor's name in the module's state whether it is filled.

    Raises:
        RequestError: a file is damaged, or holds what is not finite.
    """
    before: list[tuple[dict[str, Any], str, Tensor]] = []
    values: dict[int, nn.Parameter] = {}  # a tied one has one value
    try:
        for prefix, part in list(module.named_modules()):
            for slots in (part._parameters, part._buffers):
                for key, old in list(slots.items()):
                    name = f"{prefix}.{key}" if prefix else key
                    if old is None or not wanted(name):
                        continue
                    if old.is_meta:
                        if id(old) not in values:
                            values[id(old)] = nn.Parameter(
                                _in_float32(weights.read(name)), old.requires_grad
                            )
                        before.append((slots, key, old))
                        slots[key] = values[id(old)]
                    elif old.dtype in _HALF and not isinstance(old, nn.Parameter):
                        before.append((slots, key, old))
                        slots[key] = old.float()
        yield
    finally:
        for slots, key, old in before:
            slots[key] = old


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
    with ExitStack() as stack:
        for name in blocks:
            part = module.get_submodule(name)
            own, set_before = part.forward, part.__dict__.get("forward")
            part.__dict__["forward"] = _filling(partial(block, module, weights, name), own)
            stack.callback(_restore, part, set_before)
        yield


def _filling(
    fill: Callable[[], AbstractContextManager[None]], own: Callable[..., Any]
) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        with fill():
            return own(*args, **kwargs)

    return forward


def _restore(part: nn.Module, forward: Any) -> None:
    del part.__dict__["forward"]
    if forward is not None:
        part.__dict__["forward"] = forward


def _in_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALF else tensor
