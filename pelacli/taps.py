"""Catch the outputs of named modules during a forward pass: the features that are distilled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pelacli import models
from pelacli.errors import RequestError
from pelacli.lowrank import LowRankLinear


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
        found = models.blocks(module)
        if not found:
            raise RequestError(
                "taps: the model has no repeated blocks; name modules in pretrain.taps"
            )
        return found
    for pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise RequestError(
                f"taps: {pattern!r} matches no module; blocks are {', '.join(names[:3])} …"
            )
    return [name for name in names if any(re.fullmatch(p, name) for p in patterns)]


@contextmanager
def caught(module: nn.Module, names: Sequence[str]) -> Iterator[Mapping[str, Tensor]]:
    """While active, name → output of the last call of each named module."""
    outputs: dict[str, Tensor] = {}

    def catch(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            outputs[name] = models.main_output(output)

        return hook

    handles = [module.get_submodule(name).register_forward_hook(catch(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _inside_low_rank(module: nn.Module, name: str) -> bool:
    parent, _, child = name.rpartition(".")
    return child in ("down", "up") and isinstance(module.get_submodule(parent), LowRankLinear)
