"""Time a model beside its dense original."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pelacli import console
from pelacli.errors import RequestError
from pelacli.exports.dense import fold
from pelacli.lowrank.find import low_rank_layers
from pelacli.measure import latency
from pelacli.messages import naming
from pelacli.models import examples
from pelacli.models.opened import OpenModel
from pelacli.models.prediction import predict
from pelacli.report.latencies import Conditions, Speed, Speeds, TimingRequest
from pelacli.system import devices
from pelacli.system.amounts import Unit
from pelacli.system.turns import Timing
from pelacli.train.compilation import compiled_blocks

SECONDS = 2.0  # of timing, per model and batch size


def time_model(opened: OpenModel, request: TimingRequest) -> Speeds:
    """Time a model, and its dense original in turns with it where it is low-rank.

    The original is built from the model itself, by multiplying its factors out: it has the dense
    weights' shapes, and values that take as long. The model stays in the precision and on the
    device that it is timed on.

    Raises:
        RequestError: it can't be run on a plain sample, or not on this device in this precision.
    """
    device = devices.select(request.device)
    modules = [opened.module]
    if low_rank_layers(opened.module):
        modules.append(fold(copy.deepcopy(opened.module)))
    precision = request.precision or own_precision(opened)
    with naming(f"{opened.ref}: can't be run on a plain sample", "it can't be timed"):
        sample = examples.example(opened)
    if sample is None:
        raise RequestError(f"{opened.ref}: pela knows no sample of it; it can't be timed")
    conditions = conditions_of(device, precision, request.compile)
    for module in modules:
        to_precision(module, precision)
    speeds = []
    for size in request.batch_sizes:
        batch = batch_of(sample, size, latency.DTYPES[precision])
        where = f"{opened.ref}: can't be timed at batch size {size} {conditions}"
        with naming(where, f"change {_options(request)}"), compiled(modules, on=request.compile):
            speeds.append(_speed(modules, batch, size, device))
    return Speeds(conditions, speeds)


def _speed(modules: Sequence[nn.Module], batch: Any, size: int, device: torch.device) -> Speed:
    timings = side_by_side(f"timing batches of {size}", modules, batch, device)
    peaks = [latency.peak_bytes(module, batch, predict, device) for module in modules]
    if len(modules) == 1:
        return Speed(size, timings[0], peak=peaks[0])
    return Speed(size, timings[0], timings[1], *peaks)


def side_by_side(
    description: str, modules: Sequence[nn.Module], batch: Any, device: torch.device
) -> list[Timing]:
    """`pelacli.measure.latency.side_by_side`, with a progress display of this description."""
    with console.progress(description, 1.0, Unit.SHARE) as bar:
        return latency.side_by_side(
            modules, batch, predict, seconds=SECONDS, device=device, reach=bar.reach
        )


def conditions_of(device: torch.device, precision: str, compile: bool) -> Conditions:
    """The conditions on this machine."""
    threads = torch.get_num_threads()
    return Conditions(device.type, devices.model_of(device), threads, precision, compile)


def to_precision(module: nn.Module, precision: str) -> None:
    """Give all floating tensors of a module one precision, in place; complex ones, which
    ``module.to`` would make real, stay."""
    {"fp32": module.float, "bf16": module.bfloat16, "fp16": module.half}[precision]()


def batch_of(sample: Any, size: int, dtype: torch.dtype) -> Any:
    """A batch of a sample (a tensor [1, …], or tensors by name) that is repeated ``size`` times.
    Floating values are random: zeros cost some devices less."""
    if isinstance(sample, dict):
        return {name: batch_of(value, size, dtype) for name, value in sample.items()}
    batch: Tensor = sample.repeat(size, *[1] * (sample.ndim - 1))
    if not batch.is_floating_point():
        return batch
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch.shape, generator=generator).to(batch.device, dtype)


@contextmanager
def compiled(modules: Sequence[nn.Module], *, on: bool) -> Iterator[None]:
    """While active, the modules run compiled, each for the shapes that come first: what was
    compiled for others would be taken as the sign of changing shapes, and slower."""
    if on:
        torch.compiler.reset()
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(compiled_blocks(module, on=on))
        yield


def own_precision(opened: OpenModel) -> str:
    """The precision that most of a model's weights are stored in; "fp32" where that is another."""
    numbers: Counter[torch.dtype] = Counter()
    for name, parameter in opened.module.named_parameters():
        numbers[opened.stored.get(name, parameter.dtype)] += parameter.numel()
    most = max(numbers, key=lambda dtype: numbers[dtype], default=torch.float32)
    return next((name for name, dtype in latency.DTYPES.items() if dtype == most), "fp32")


def _options(request: TimingRequest) -> str:
    """The options that may be at fault."""
    if request.compile:
        return "--batch-size, --device, --precision or leave --compile out"
    return "--batch-size, --device or --precision"
