"""torch.compile, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from pelacli.models.blocks import blocks


@contextmanager
def compiled_blocks(module: nn.Module, *, on: bool) -> Iterator[None]:
    """While active, the repeated blocks are compiled one by one; the whole of a model without any.

    Block by block it takes less time where blocks are alike. Only a block's `forward` is compiled,
    not the call around it, as `nn.Module.compile` would: that runs the block's hooks (taps,
    sharding), and compiled code would keep those of its first call.

    Args:
        on: without it nothing happens.
    """
    if not on:
        yield
        return
    compiled = [module.get_submodule(name) for name in blocks(module)] or [module]
    config: Any = torch._dynamo.config
    with ExitStack() as stack:
        if hasattr(config, "recompile_limit"):
            # Ranks differ from block to block; past the limit torch would go on uncompiled.
            limit = max(config.recompile_limit, 8 * len(compiled))
            stack.enter_context(config.patch(recompile_limit=limit))
        for block in compiled:
            block.forward = torch.compile(block.forward)
            stack.callback(block.__dict__.pop, "forward", None)
        yield
