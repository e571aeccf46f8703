"""How long one linear layer takes on this device: dense, and low-rank at some ranks in each form.

Matrix products are not as fast as their FLOPs say: two small ones may take longer than the large
one that they stand for. So the layers of a model are timed one by one, and a plan in units of time
is made of that. `pelacli.measure.layer_times_cache` keeps the times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from torch import Tensor, nn

from pelacli.lowrank.linear import LowRankLinear
from pelacli.lowrank.pivot_linear import PivotLinear
from pelacli.measure.latency import waiting
from pelacli.system.turns import Clock, in_turns, seconds_of

_POINTS = 12  # ranks that are timed, at most
_MULTIPLES = (64, 32, 16, 8, 1)  # of which they are, the largest that gives enough points
_SECONDS = 0.1  # that each variant takes up
_AT_LEAST = 1e-3  # seconds of what is timed as one call: clocks and launches are noise beside it
_MOST_COPIES = 32  # of a variant, that are called one after the other for that
_POOL = 2**27  # bytes of random weights: more than caches hold, so that weights come from memory

Table = Mapping[int, int]  # rank → nanoseconds


@dataclass(frozen=True)
class Case:
    """A layer as it is run.

    Attributes:
        out, in_, bias: of the layer.
        tokens: positions that one call of the layer takes, of all samples of the batch.
    """

    out: int
    in_: int
    bias: bool
    tokens: int


@dataclass(frozen=True)
class LayerTimes:
    """Nanoseconds of one call of a layer.

    Attributes:
        forms: form → rank → nanoseconds, of the ranks that were timed.
    """

    dense: int
    forms: Mapping[str, Table]


# (case, rank) → a layer of a form. Its parameters need no values and are on "meta"; buffers have
# theirs.
Make = Callable[[Case, int], nn.Module]


def _factors(case: Case, rank: int) -> nn.Module:
    return LowRankLinear(case.in_, case.out, rank, case.bias, device="meta")


def _pivots(case: Case, rank: int) -> nn.Module:
    low = PivotLinear(case.in_, case.out, rank, case.bias, device="meta")
    generator = torch.Generator().manual_seed(0)
    low.order = torch.randperm(len(low.order), generator=generator).int()
    return low


def _dense(case: Case, rank: int) -> nn.Module:
    return nn.Linear(case.in_, case.out, case.bias, device="meta")


FORMS: Mapping[str, Make] = {"factors": _factors, "pivots": _pivots}


def measure(
    case: Case,
    forms: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    *,
    compile: bool = False,
    clock: Clock = time.perf_counter,
) -> LayerTimes:
    """Time a layer, dense and at some ranks in these forms, all in turns.

    Raises:
        RuntimeError: as torch raises it, where the device can't run the layer in this type.
    """
    pool = _Pool(device, dtype, case)
    grid = [(form, rank) for form in forms for rank in ranks_to_time(case, form)]
    low_rank = [partial(FORMS[form], case, rank) for form, rank in grid]
    variants = [_Stack(make, pool) for make in (partial(_dense, case, 0), *low_rank)]
    x = torch.randn(case.tokens, case.in_, generator=torch.Generator().manual_seed(0))
    x = x.to(device, dtype)
    wait = waiting(device)
    with torch.no_grad(), _many_shapes(on=compile):
        for stack in variants:
            stack.prepare(x, wait, clock, compile=compile)
        calls = [partial(stack, x) for stack in variants]
        rounds = in_turns(calls, _SECONDS, wait=wait, clock=clock)
    dense, *low = (
        max(1, round(1e9 * median(seconds) / len(stack.layers)))
        for stack, seconds in zip(variants, rounds, strict=True)
    )
    tables: dict[str, dict[int, int]] = {form: {} for form in forms}
    for (form, rank), nanoseconds in zip(grid, low, strict=True):
        tables[form][rank] = nanoseconds
    return LayerTimes(dense, tables)


def ranks_to_time(case: Case, form: str) -> list[int]:
    """The ranks that are timed, ascending: multiples of a large power of two, up to about where the
    form has as many parameters as the dense layer."""
    smaller = min(case.out, case.in_)
    top = case.out * case.in_ // (case.out + case.in_) if form == "factors" else smaller - 1
    if top < 1:
        return []
    multiple = next(m for m in _MULTIPLES if top // m >= min(_POINTS - 2, top))
    step = -(-top // (multiple * _POINTS)) * multiple
    return sorted({*range(step, top + 1, step), top // multiple * multiple})


def costs(times: Table, number: int, step: int | None) -> NDArray[np.int64]:
    """Nanoseconds at each rank, from those at some.

    More rank never costs less: what was measured otherwise is noise, and neighbours share it.
    Between two ranks that were timed, the time grows in steps, as devices work in tiles: a rank
    costs what the next multiple of ``step`` does, or without a step what the next timed one does.
    Past the last one it grows as before it.

    Args:
        times: at least one rank → nanoseconds.

    Returns:
        The costs of the ranks 0 to number − 1.
    """
    known = np.array(sorted(times))
    values = isotonic_regression([times[rank] for rank in known.tolist()]).x
    ranks = np.arange(number)
    if step is None:
        next_known = np.append(known, number)[np.searchsorted(known, ranks)]
        ranks = np.maximum(ranks, np.where(ranks <= known[-1], next_known, 0))
    else:
        ranks = -(-ranks // step) * step
    slope = (values[-1] - values[0]) / max(1, known[-1] - known[0])
    past = np.maximum(ranks - known[-1], 0) * slope
    result: NDArray[np.int64] = np.rint(np.interp(ranks, known, values) + past).astype(np.int64)
    return result


class _Pool:
    """Random numbers that stand in for all weights, so that many layers take no more memory than a
    few, and none finds its weights in a cache."""

    def __init__(self, device: torch.device, dtype: torch.dtype, case: Case) -> None:
        size = max(_POOL // dtype.itemsize, 2 * (case.out * case.in_ + case.out))
        generator = torch.Generator().manual_seed(0)
        some = torch.randn(2**16, generator=generator).mul_(0.02).to(device, dtype)
        self._values = some.repeat(-(-size // len(some)))[:size]
        self._next = 0

    def fill(self, module: nn.Module) -> None:
        """Give a module weights from here; its buffers come to the same device."""
        for part in module.modules():
            for name, buffer in part._buffers.items():
                part._buffers[name] = None if buffer is None else buffer.to(self._values.device)
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(self._take(parameter), False)

    def _take(self, like: Tensor) -> Tensor:
        if self._next + like.numel() > len(self._values):
            self._next = 0
        taken = self._values[self._next : self._next + like.numel()].view(like.shape)
        self._next += -(-like.numel() // 128) * 128  # where a device's allocator would put it
        return taken


class _Stack:
    """Copies of one layer that are called one after the other, each with weights of its own."""

    def __init__(self, make: Callable[[], nn.Module], pool: _Pool) -> None:
        self._make, self._pool = make, pool
        self.layers: list[Callable[[Tensor], Tensor]] = []

    def prepare(
        self, x: Tensor, wait: Callable[[], object], clock: Clock, *, compile: bool
    ) -> None:
        """Warm up, and see how many copies it takes until the clock says something."""
        self._add(compile)
        self(x)
        seconds = max(seconds_of(partial(self, x), wait, clock), _AT_LEAST / _MOST_COPIES)
        for _ in range(min(_MOST_COPIES, int(_AT_LEAST // seconds))):
            self._add(compile)
        self(x)

    def _add(self, compile: bool) -> None:
        layer = self._make().eval()
        self._pool.fill(layer)
        self.layers.append(torch.compile(layer) if compile else layer)

    def __call__(self, x: Tensor) -> None:
        for layer in self.layers:
            layer(x)


@contextmanager
def _many_shapes(*, on: bool) -> Iterator[None]:
    """While active, torch compiles each shape for itself, however many there are. It would take
    the second shape as the sign of changing ones, and go on uncompiled past a limit."""
    if not on:
        yield
        return
    torch.compiler.reset()
    config: Any = torch._dynamo.config
    limits = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), 100_000)
    with config.patch(automatic_dynamic_shapes=False, **limits):
        yield
