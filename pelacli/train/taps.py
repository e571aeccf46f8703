"""The modules whose outputs are distilled: which they are, and which of them at what time."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from pelacli.errors import RequestError
from pelacli.lowrank.linear import LowRankLinear
from pelacli.models import blocks as models_blocks


def choose(module: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    """Names of the modules to distil: those that match, or the model's blocks.

    Args:
        patterns: regular expressions that must match a module's whole name; None means every
            repeated block, whose outputs are the residual stream (the paper's features).

    Raises:
        RequestError: an expression matches nothing, or the model has no blocks to default to.
    """
    names = [
        name
        for name, m in module.named_modules()
        if name and not isinstance(m, LowRankLinear) and not _inside_low_rank(module, name)
    ]
    if patterns is None:
        blocks = models_blocks.blocks(module)
        if not blocks:
            raise RequestError(
                "taps: the model has no repeated blocks; name modules in pretrain.taps"
            )
        return blocks
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise RequestError(
                f"taps: {pattern!r} matches no module; blocks are {', '.join(names[:3])} …"
            )
    return [name for name in names if any(re.fullmatch(p, name) for p in patterns)]


def check_compiled(module: nn.Module, names: Sequence[str]) -> None:
    """Refuse taps inside blocks that are compiled: compiled code keeps the hooks of its first call.

    Raises:
        RequestError: a tap is inside a block, or inside a model without blocks.
    """
    blocks = models_blocks.blocks(module)
    for name in names:
        if not blocks or any(name.startswith(f"{block}.") for block in blocks):
            raise RequestError(
                f"taps: {name} lies inside of what compile = true compiles; tap blocks, or set "
                "compile = false"
            )


def joined(names: Sequence[str], done: float, over: float) -> Sequence[str]:
    """The taps that are distilled when a share of the run is over: the first to begin with, then
    one more at a time, and all from ``over`` on.

    Args:
        done: share of the run that is over, 0 to 1.
        over: share of the run in which taps join in; 0 has all of them at once.

    Returns:
        At least the first tap.
    """
    if done >= over:
        return names
    return names[: 1 + int(done / over * len(names) + 1e-9)]


def _inside_low_rank(module: nn.Module, name: str) -> bool:
    parent, _, child = name.rpartition(".")
    return child in ("down", "up") and isinstance(module.get_submodule(parent), LowRankLinear)
