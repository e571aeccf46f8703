"""Dense and low-rank weights in 8 and 4 bits, by torchao: size, latency, metric.

    pip install torchao
    pela decompose MODEL --ratio 0.75 --form factors --multiple 32 --calibrate SAMPLES -o ARTEFACT
    python benchmarks/quantised.py MODEL ARTEFACT               # a sentence encoder
    python benchmarks/quantised.py MODEL ARTEFACT --size 98     # a headless image model
    python benchmarks/quantised.py MODEL ARTEFACT --data DATASET

The metric and its samples are those of `rank_policies.py`; the relative error is that of the
outputs, against the dense model in float32. Every linear layer whose sides suit the kernels is
quantised, of a low-rank one its two parts. The 4 bits are those of torch's own kernel, which is
fast in bfloat16 alone (in float32 it takes row by row), so bfloat16 has a line too. Sizes are those
of the saved state. Times are medians of rounds in which all variants take turns with one batch,
each by that of the dense float32 model. Each variant is saved, loaded into a fresh model and
compared to the bit.
"""

from __future__ import annotations

import argparse
import copy
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _fashion import FASHION
from _subjects import Subject, subject_of
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pelacli.artefact import loading
from pelacli.models.prediction import predict
from pelacli.system.turns import in_turns

GROUP = 32  # weights of one scale in 4 bits, and what a layer's inputs are multiples of
OUTPUTS = 16  # of which torch's kernel of 4 bits wants multiples


@dataclass(frozen=True)
class Figures:
    """Of one variant: bytes of its state, its latency by that of the dense float32 model, its
    metric in points, and the relative error of its outputs."""

    name: str
    size: int
    latency: float
    metric: float
    error: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("artefact")
    parser.add_argument("--data", help="dataset, as for pela eval")
    parser.add_argument("--fashion", type=Path, default=FASHION, help="folder of the idx files")
    parser.add_argument("--size", type=int, help="pixels a side")
    parser.add_argument("--tests", type=int, default=500, help="samples of the metric")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    dense, low = (loading.open(ref)[0] for ref in (args.model, args.artefact))
    with tempfile.TemporaryDirectory() as cache:
        subject = subject_of(
            dense,
            data=args.data,
            fashion=args.fashion,
            tests=args.tests,
            size=args.size,
            cache=Path(cache),
        )
    table = Table(title=f"{subject.tests} samples, {torch.get_num_threads()} threads")
    for column in ("weights", "MB", "latency by dense fp32", subject.metric, "relative error"):
        table.add_column(column)
    for row in figures(subject, low.module, args.rounds):
        table.add_row(
            row.name,
            f"{row.size / 1e6:.1f}",
            f"{row.latency:.2f}",
            f"{row.metric:.2f}",
            f"{row.error:.4f}",
        )
    Console(width=100).print(table)


def figures(subject: Subject, low: nn.Module, rounds: int) -> list[Figures]:
    """The figures of all variants of a dense model and of its low-rank one.

    Raises:
        AssertionError: a variant is another model after it was saved and loaded.
    """
    sources = {"dense": subject.opened.module, "low-rank": low}
    cases = [
        (f"{kind} {bits}", source, config, dtype)
        for kind, source in sources.items()
        for bits, (config, dtype) in variants().items()
    ]
    models = [quantised(source, config, dtype) for _, source, config, dtype in cases]
    batch = subject.test[0]
    times = side_by_side(models, batch, rounds)
    result = []
    for (name, source, _, dtype), model, latency in zip(cases, models, times, strict=True):
        again, size = saved_and_loaded(model, quantised(source, None, dtype))
        with torch.no_grad():
            assert torch.equal(predict(again, batch), predict(model, batch)), name
        found = subject.measure_module(model)
        result.append(Figures(name, size, latency, found["metric"], found["error"]))
    return result


def variants() -> dict[str, tuple[Any, torch.dtype]]:
    """Name → (what torchao does to the weights, None for nothing; in what the model computes)."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

    return {
        "fp32": (None, torch.float32),
        "bf16": (None, torch.bfloat16),
        "int8": (Int8WeightOnlyConfig(), torch.float32),
        "int8, inputs too": (Int8DynamicActivationInt8WeightConfig(), torch.float32),
        "int4, bf16": (PrototypeInt4WeightOnlyConfig(group_size=GROUP), torch.bfloat16),
    }


def quantised(model: nn.Module, config: Any, dtype: torch.dtype) -> nn.Module:
    """A copy of a model that computes in a type, with its linear layers quantised."""
    from torchao.quantization import quantize_

    model = copy.deepcopy(model).eval().to(dtype)
    model.register_forward_pre_hook(partial(_in_type, dtype), with_kwargs=True)
    if config is not None:
        quantize_(model, config, filter_fn=_suits_the_kernels)
    return model


def _in_type(dtype: torch.dtype, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A model's inputs in its type, as far as they are no indices."""

    def cast(value: Any) -> Any:
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if is_float else value

    return tuple(map(cast, args)), {key: cast(value) for key, value in kwargs.items()}


def _suits_the_kernels(module: nn.Module, name: str) -> bool:
    return (
        isinstance(module, nn.Linear)
        and module.in_features % GROUP == 0
        and module.out_features % OUTPUTS == 0
    )


def saved_and_loaded(model: nn.Module, fresh: nn.Module) -> tuple[nn.Module, int]:
    """(the model from its saved state, bytes of that).

    Args:
        fresh: a model of the same layers, not quantised; it becomes the one that is given.
    """
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    size = file.tell()
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True), assign=True)
    return fresh, size


def side_by_side(models: Sequence[nn.Module], batch: Any, rounds: int) -> list[float]:
    """The median over rounds of each model's time by that of the first in the same round. A first
    round, to warm up, is not counted."""
    calls = [partial(predict, model, batch) for model in models]
    with torch.no_grad():
        turns = in_turns(calls, 0, least=rounds + 1)
    times = [np.array(turn[1:]) for turn in turns]
    return [float(np.median(own / times[0])) for own in times]


if __name__ == "__main__":
    main()
