"""Give modules other forwards for a while, each beside its class's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn


def replace_forwards(
    blocks: Sequence[nn.Module], forward: Callable[[int], Callable[..., Any]]
) -> list[Any]:
    """Give the blocks these forwards. Gives what they had of their own, beside their class's."""
    own = [block.__dict__.get("forward") for block in blocks]
    for number, block in enumerate(blocks):
        block.__dict__["forward"] = forward(number)
    return own


def restore_forwards(blocks: Sequence[nn.Module], own: Sequence[Any]) -> None:
    """Give the blocks back what `replace_forwards` gave."""
    for block, before in zip(blocks, own, strict=True):
        del block.__dict__["forward"]
        if before is not None:
            block.__dict__["forward"] = before
