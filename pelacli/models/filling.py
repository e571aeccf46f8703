"""Values for a lazily opened model's parameters, for as long as a part of it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

from pelacli.lowrank.forwards import replace_forwards, restore_forwards
from pelacli.models.on_disk import Weights
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
                                batch_in_float32(weights.read(name)), old.requires_grad
                            )
                        before.append((slots, key, old))
                        slots[key] = values[id(old)]
                    elif old.dtype in HALF and not isinstance(old, nn.Parameter):
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
