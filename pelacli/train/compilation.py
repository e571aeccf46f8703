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
    """While active, torch compiles the repeated blocks one by one, or the whole of a model that has
    none.

    One by one takes less time where blocks are alike. Only a block's ``forward`` is compiled.
    `nn.Module.compile` would also compile the block's hooks (taps, sharding) and keep those of the
    first call.

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
