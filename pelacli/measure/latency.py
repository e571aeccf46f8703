"""Time forward passes of several models side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pelacli.system.devices import move_batch


@torch.no_grad()
def side_by_side(
    modules: Sequence[nn.Module],
    inputs: Any,
    predict: Callable[[nn.Module, Any], Any],
    *,
    seconds: float = 2.0,
    device: torch.device | str = "cpu",
) -> list[float]:
    """Median milliseconds of one forward pass of each module over the same batch.

    The modules take turns, so that a machine that slows down slows all of them. After a warm-up
    each runs for about ``seconds``, and at least five times.
    """
    inputs = move_batch(inputs, device)
    waits = torch.device(device).type != "cpu"

    def once(module: nn.Module) -> float:
        if waits:
            torch.accelerator.synchronize()
        start = time.perf_counter()
        predict(module, inputs)
        if waits:
            torch.accelerator.synchronize()
        return 1000 * (time.perf_counter() - start)

    for module in modules:
        module.eval().to(device)
        once(module)
    times: list[list[float]] = [[] for _ in modules]
    end = time.perf_counter() + seconds * len(modules)
    while len(times[0]) < 5 or (time.perf_counter() < end and len(times[0]) < 500):
        for module, passes in zip(modules, times, strict=True):
            passes.append(once(module))
    return [statistics.median(passes) for passes in times]
