"""Both forms of low-rank layers on a real model's layers: errors in half precision, and time.

    python benchmarks/forms.py MODEL [--tokens 1576] [--share 1/2]

Every layer of a shape is cut by plain SVD to a share of its parameters, each form at its own rank.
Errors are those of the output for random inputs, relative to the same layer in float32; beside them
how much the largest entry that mixes the pivots is. Times are of one thread or what OMP_NUM_THREADS
says, medians of turns, on float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pelacli.factorize import factors
from pelacli.lowrank import find, pivoting
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.replace import Factors, Parts, in_form, replace
from pelacli.models import opening
from pelacli.ranks import forms
from pelacli.ranks.forms import Form

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=8 * 197)
    parser.add_argument("--share", type=Fraction, default=Fraction(1, 2))
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--weights", default="pretrained")
    args = parser.parse_args()
    opened = opening.open(args.model, weights=args.weights)
    layers = find.free_layers(find.find_layers(opened.module, head=opened.head), args.model)
    shapes = list(dict.fromkeys(layer.shape for layer in layers))
    console = Console(width=120)
    errors = Table(title=f"errors at {args.share} of the parameters: median (largest) of layers")
    times = Table(title=f"milliseconds of {args.tokens} tokens, {torch.get_num_threads()} threads")
    for column in ("layer", "ranks", *(f"{w} {p}" for p in HALF for w in ("dense", *forms.FORMS))):
        errors.add_column(column)
    errors.add_column("largest entry")
    for column in ("layer", "dense", *forms.FORMS, "factors at pivots' rank"):
        times.add_column(column)
    for shape in shapes:
        alike = [layer for layer in layers if layer.shape == shape]
        errors.add_row(*_errors(alike, args.share))
        times.add_row(*_times(alike[0], args.share, args.tokens, args.turns))
    console.print(errors)
    console.print(times)


def ranks(shape: tuple[int, int], share: Fraction) -> dict[Form, int]:
    """The largest rank of each form within a share of the dense parameters."""
    limit = share * forms.dense_weights(shape)
    return {
        form: max(r for r in range(1, min(shape)) if forms.weights(shape, r, form) <= limit)
        for form in forms.FORMS
    }


def _layer(weight: Tensor, parts: Parts | None, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False)).eval()
    model[0].weight = nn.Parameter(weight.clone())
    model.to(dtype)
    if parts is not None:
        replace(model, {"0": parts})
    return model


def _cut(layer: Layer, rank: int) -> Factors:
    down, up = factors.cut(layer.weight.float(), None, rank)
    return down, up, None


@torch.no_grad()
def _errors(layers: Sequence[Layer], share: Fraction) -> list[str]:
    shape = layers[0].shape
    at = ranks(shape, share)
    found: dict[str, list[float]] = {}
    largest = []
    for layer in layers:
        weight, x = layer.weight.float(), torch.randn(512, shape[1])
        cuts = {form: in_form(_cut(layer, rank), form) for form, rank in at.items()}
        assert isinstance(cuts["pivots"], pivoting.Pivots)
        largest.append(cuts["pivots"].largest)
        for precision, dtype in HALF.items():
            for name, parts in (("dense", None), *cuts.items()):
                expected = _layer(weight, parts)(x)
                given = _layer(weight, parts, dtype)(x.to(dtype)).float()
                error = float((given - expected).norm() / expected.norm())
                found.setdefault(f"{name} {precision}", []).append(error)
    cells = [f"{statistics.median(e):.4f} ({max(e):.4f})" for e in found.values()]
    return [_name(shape), f"{at['factors']}, {at['pivots']}", *cells, f"{max(largest):.2f}"]


@torch.no_grad()
def _times(layer: Layer, share: Fraction, tokens: int, turns: int) -> list[str]:
    at = ranks(layer.shape, share)
    weight, x = layer.weight.float(), torch.randn(8, tokens // 8, layer.shape[1])
    makes: list[Parts | None] = [
        None, _cut(layer, at["factors"]), in_form(_cut(layer, at["pivots"]), "pivots"),
        _cut(layer, at["pivots"]),
    ]  # fmt: skip
    modules = [_layer(weight, parts) for parts in makes]
    calls: list[Callable[[], Tensor]] = [lambda m=module: m(x) for module in modules]  # type: ignore[misc]
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(turns + 1):
        for call, times in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                times.append(1000 * (time.perf_counter() - start))
    return [_name(layer.shape), *(f"{statistics.median(t):.2f}" for t in taken)]


def _name(shape: tuple[int, int]) -> str:
    return f"{shape[0]} × {shape[1]}"


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
