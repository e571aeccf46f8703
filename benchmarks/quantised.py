"""Dense and low-rank weights in 8 and 4 bits, by torchao: size, latency, distance to dense float32.

    pip install torchao
    pela decompose MODEL --ratio 0.75 --form factors --multiple 32 --calibrate TEXTS -o ARTEFACT
    python benchmarks/quantised.py MODEL ARTEFACT --data OTHER_TEXTS

Every linear layer is quantised, of a low-rank one its two parts. The relative error is that of the
model's output for the samples. Sizes are those of the saved state. Times are medians of rounds in
which all variants take turns, each by that of the dense float32 model. Each variant is saved,
loaded into a fresh model and compared to the bit.

torchao has no kernel for 4 bits on a CPU. There the weights are rounded to them and held in 8,
which tells the error alone, so that variant has neither size nor time.
"""

from __future__ import annotations

import argparse
import copy
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pelacli.artefact import loading
from pelacli.data.loader import loader
from pelacli.models.opened import OpenModel
from pelacli.models.prediction import predict
from pelacli.recipe.data import Data
from pelacli.system.turns import in_turns
from pelacli.tasks import unlabelled

GROUP = 32  # weights of one scale in 4 bits


@dataclass(frozen=True)
class Figures:
    """Of one variant: bytes of its state, its latency by that of the dense float32 model, and its
    relative error; None where there is none to be had."""

    name: str
    size: int | None
    latency: float | None
    error: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("artefact")
    parser.add_argument("--data", required=True)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    dense, low = (loading.open(ref)[0] for ref in (args.model, args.artefact))
    batch = samples(dense, args.data, args.samples)
    table = Table(title=f"{args.samples} samples, {torch.get_num_threads()} threads")
    for column in ("weights", "MB", "latency by dense fp32", "relative error to dense fp32"):
        table.add_column(column)
    for row in figures(dense.module, low.module, batch, args.rounds):
        table.add_row(
            row.name,
            "–" if row.size is None else f"{row.size / 1e6:.1f}",
            "–" if row.latency is None else f"{row.latency:.2f}",
            f"{row.error:.4f}",
        )
    Console(width=100).print(table)


def samples(opened: OpenModel, data: str, count: int) -> Any:
    """One batch of a dataset's first samples."""
    section = Data(dataset=data)
    dataset = unlabelled.Task().open(section, section.val, inputs=opened.inputs)
    return next(iter(loader(dataset, batch_size=count, limit=count, pinned=False)))["inputs"]


def figures(
    dense: nn.Module, low: nn.Module, batch: Tensor | Mapping[str, Tensor], rounds: int
) -> list[Figures]:
    """The figures of all variants of a dense model and of its low-rank one.

    Raises:
        AssertionError: a variant is another model after it was saved and loaded.
    """
    models: dict[str, nn.Module] = {}
    for kind, model in (("dense", dense), ("low-rank", low)):
        for bits, config in configs().items():
            models[f"{kind} {bits}"] = quantised(model, config)
    with torch.no_grad():
        outputs = {name: predict(model, batch).float() for name, model in models.items()}
    reference = outputs["dense fp32"]
    timed = {name: model for name, model in models.items() if not name.endswith("int4")}
    times = side_by_side(timed, batch, rounds)
    result = []
    for name, model in models.items():
        source = low if name.startswith("low") else dense
        again, size = saved_and_loaded(model, source)
        with torch.no_grad():
            assert torch.equal(predict(again, batch).float(), outputs[name]), name
        error = float((outputs[name] - reference).norm() / reference.norm())
        is_held_in_8 = name not in timed
        result.append(Figures(name, None if is_held_in_8 else size, times.get(name), error))
    return result


def configs() -> dict[str, Any]:
    """What torchao does to the weights, by its name here."""
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
    )
    from torchao.quantization.granularity import PerGroup

    return {
        "fp32": None,
        "int8": Int8WeightOnlyConfig(),
        "int8, inputs too": Int8DynamicActivationInt8WeightConfig(),
        "int4": IntxWeightOnlyConfig(
            weight_dtype=torch.int4,  # type: ignore[attr-defined]
            granularity=PerGroup(GROUP),
        ),
    }


def quantised(model: nn.Module, config: Any) -> nn.Module:
    """A copy of a model with its linear layers quantised."""
    from torchao.quantization import quantize_

    model = copy.deepcopy(model).eval()
    if config is not None:
        quantize_(model, config, filter_fn=_has_whole_groups)
    return model


def _has_whole_groups(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and module.in_features % GROUP == 0


def saved_and_loaded(model: nn.Module, source: nn.Module) -> tuple[nn.Module, int]:
    """(the model from its saved state, bytes of that).

    Args:
        source: a model of the same layers, not quantised.
    """
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    size = file.tell()
    file.seek(0)
    again = copy.deepcopy(source).eval()
    again.load_state_dict(torch.load(file, weights_only=True), assign=True)
    return again, size


def side_by_side(
    models: Mapping[str, nn.Module], batch: Tensor | Mapping[str, Tensor], rounds: int
) -> dict[str, float]:
    """The median over rounds of each model's time by that of "dense fp32" in the same round. A
    first round, to warm up, is not counted."""
    calls = [partial(predict, model, batch) for model in models.values()]
    with torch.no_grad():
        turns = in_turns(calls, 0, least=rounds + 1)
    times = {name: np.array(turn[1:]) for name, turn in zip(models, turns, strict=True)}
    return {name: float(np.median(own / times["dense fp32"])) for name, own in times.items()}


if __name__ == "__main__":
    main()
