"""Time forward passes of several models side by side, and see what memory they take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from pelacli.system.devices import move_batch
from pelacli.system.turns import Clock, Timing, in_turns

# Names of `pelacli.system.precisions.NAMES` → types
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WARM_UP = 2  # passes; the first also compiles, tunes and allocates
Predict = Callable[[nn.Module, Any], Any]


@torch.no_grad()
def side_by_side(
    modules: Sequence[nn.Module],
    inputs: Any,
    predict: Predict,
    *,
    seconds: float = 2.0,
    device: torch.device | str = "cpu",
    clock: Clock = time.perf_counter,
) -> list[Timing]:
    """How long one forward pass of each module over the same batch takes.

    The modules take turns. After a warm-up each runs for about ``seconds``, and at least five
    times.
    """
    inputs = move_batch(inputs, device)
    for module in modules:
        module.eval().to(device)
        for _ in range(_WARM_UP):
            predict(module, inputs)
    calls = [partial(predict, module, inputs) for module in modules]
    return [Timing.of(t) for t in in_turns(calls, seconds, wait=waiting(device), clock=clock)]


@torch.no_grad()
def peak_bytes(
    module: nn.Module, inputs: Any, predict: Predict, device: torch.device
) -> int | None:
    """Memory that one forward pass takes at most, the model's own tensors included; None where the
    device does not tell."""
    if device.type != "cuda":
        return None
    inputs = move_batch(inputs, device)
    own = sum(t.nbytes for tensors in (module.parameters(), module.buffers()) for t in tensors)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    predict(module, inputs)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before + own


def waiting(device: torch.device | str) -> Callable[[], None]:
    """What waits until a device has done all that it was given; the CPU does so at once."""
    if torch.device(device).type == "cpu":
        return lambda: None
    return torch.accelerator.synchronize
