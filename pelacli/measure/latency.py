"""Time forward passes of several models side by side, and see what memory they take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from pelacli.factorize.batches import pieces, samples_in
from pelacli.system.amounts import Reach
from pelacli.system.devices import move_batch
from pelacli.system.turns import Clock, Timing, in_turns, seconds_of

# Names of `pelacli.system.precisions.NAMES` → types
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WARM_UP = 2  # passes; the first also compiles, tunes and allocates
_LONG = 2.0  # seconds of a pass: of a longer one fewer are made
_LEAST, _LEAST_OF_LONG = 5, 3  # rounds
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
    reach: Reach = lambda done, total: None,
) -> list[Timing]:
    """How long one forward pass of each module over the same batch takes.

    The modules take turns. After a warm-up each runs for about ``seconds``, and at least five
    times, or three times where a pass takes more than two seconds.

    Args:
        reach: is given the share of the work that is done, and 1.
    """
    inputs, wait = move_batch(inputs, device), waiting(device)
    calls = [partial(predict, module.eval().to(device), inputs) for module in modules]
    longest = 0.0
    for call in calls:
        took = 0.0
        for _ in range(_WARM_UP):
            if took <= _LONG:
                took = seconds_of(call, wait, clock)
        longest = max(longest, took)
    long = longest > _LONG
    least, warm = (_LEAST_OF_LONG, 1) if long else (_LEAST, _WARM_UP)
    before = warm / (warm + least) if long else 0.0  # the warm-up of quick ones takes no time
    reach(before, 1.0)

    def after_warm_up(done: float, total: float) -> None:
        reach(before + (1 - before) * done, total)

    rounds = in_turns(calls, seconds, wait=wait, clock=clock, least=least, reach=after_warm_up)
    return [Timing.of(times) for times in rounds]


@torch.no_grad()
def first_samples(
    module: nn.Module,
    inputs: Any,
    predict: Predict,
    *,
    device: torch.device | str = "cpu",
    clock: Clock = time.perf_counter,
) -> Any:
    """A batch, or so many of its first samples, a power of two, as pass through a model in about a
    second: a batch of 64 texts of 512 tokens keeps a language model busy for minutes on a CPU."""
    module.eval().to(device)
    count, size = samples_in(inputs), 1
    while size < count:
        part = pieces(inputs, count, size)[0]
        call = partial(predict, module, move_batch(part, device))
        # The faster of two: the first allocates, and what else runs may hold one of them up.
        if 2 * min(seconds_of(call, waiting(device), clock) for _ in range(2)) > 1:
            return part
        size *= 2
    return inputs


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
