"""torch.compile, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    pass

from pelacli.models.blocks import blocks


def compile_blocks(module: nn.Module, on: bool) -> None:
    """torch.compile the repeated blocks one by one; the whole of a model that has none.

    Block by block it takes less time where blocks are alike, and what hooks the blocks (taps,
    sharding) stays outside of the compiled code, which would keep the hooks of its first call.
    """
    found = [module.get_submodule(name) for name in blocks(module)] or [module]
    config: Any = torch._dynamo.config
    if on and hasattr(config, "recompile_limit"):
        # Ranks differ from block to block; past the limit torch would go on uncompiled.
        config.recompile_limit = max(config.recompile_limit, 8 * len(found))
    for block in found:
        if on:
            block.forward = torch.compile(block.forward)
        else:
            block.__dict__.pop("forward", None)
