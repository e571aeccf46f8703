"""Speed and memory of the rank engine, against the reference's way and torch's own SVD.

    python benchmarks/decompose.py                       # all parts; twenty-five minutes
    python benchmarks/decompose.py --part speed --json speed.json
    python benchmarks/decompose.py --quick               # tiny shapes, seconds: does it still run?

Parts: ``speed`` of factorising alone; ``calibration`` against plain forward passes; ``memory`` of
a fresh process; ``scaling`` against depth, width and number of layers (``--plot FILE.svg``);
``process``: the whole command. Everything is measured in this one run, on whatever runs beside it:
use a quiet machine, and set OMP_NUM_THREADS to the cores that count.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import _calibration
import _memory
import numpy as np
import torch
from _common import VITS, exponent, machine, network, plot, seconds, vit_shapes
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pelacli.factorize import engine
from pelacli.factorize.factors import decompose
from pelacli.lowrank import find
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget
from pelacli.ranks.plan import Plan

PARTS = ("speed", "calibration", "memory", "scaling", "process")
REFERENCE_TIMES, SVD_TIMES, EXCESS = 15.0, 3.0, 1e-6  # the targets
Row = dict[str, Any]


def factorised(net: nn.Module, ratio: Fraction) -> tuple[Plan, Row]:
    """Factorise in place, as the command does; the plan, and the seconds of each step."""
    layers = find.find_layers(net)
    start = time.perf_counter()
    cuts = engine.solve(layers, {})
    solved = time.perf_counter()
    plan = planner.plan(
        engine.spectra(layers, cuts, {}),
        Budget("energy", ratio, scope="layers"),
    )
    planned = time.perf_counter()
    engine.apply(net, layers, {}, plan, solutions=cuts)
    steps = {
        "solve": solved - start,
        "plan": planned - solved,
        "cut": time.perf_counter() - planned,
    }
    return plan, {"seconds": sum(steps.values()), "steps": steps}


def thin(weights: Sequence[Tensor], chosen: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """(down, up) of every layer by torch's thin SVD."""
    found = []
    for weight, rank in zip(weights, chosen, strict=True):
        U, S, V = torch.linalg.svd(weight, full_matrices=False)
        root = S[:rank].sqrt()
        found.append((root[:, None] * V[:rank], U[:, :rank] * root))
    return found


def reference(weights: Sequence[Tensor], chosen: Sequence[int]) -> None:
    """The reference code's way (DeiT/low_rank.py): NumPy's full SVD of the transposed weight."""
    for weight, rank in zip(weights, chosen, strict=True):
        U, S, V = np.linalg.svd(weight.T.numpy())
        root = np.diag(S[:rank] ** 0.5)
        _ = U[:, :rank] @ root, root @ V[:rank]


def excess(weight: Tensor, rank: int, down: Tensor, up: Tensor) -> tuple[float, float]:
    """(error − optimum) / ‖W‖² and / optimum, of squared Frobenius norms in float64."""
    exact = torch.linalg.svdvals(weight.double()).square()
    optimum = float(exact[rank:].sum())
    error = float((weight.double() - up.double() @ down.double()).square().sum())
    over = error - optimum
    return over / float(exact.sum()), over / optimum if optimum else 0.0


def speed(name: str, ratio: Fraction, repeats: int, with_reference: bool) -> Row:
    """Seconds of every way on one model's layers, and how far from the optimum ours ends."""
    blocks, width = VITS[name]
    shapes = vit_shapes(blocks, width)
    net = network(shapes)
    layers = find.find_layers(net)
    weights = [layer.weight for layer in layers]
    factorised(network(vit_shapes(1, width // 4)), ratio)  # loads what is loaded on first use
    ours: list[tuple[float, Row]] = []
    for _ in range(repeats):
        plan, took = factorised(copy.deepcopy(net), ratio)
        ours.append((took["seconds"], took))
    took = sorted(ours, key=lambda one: one[0])[len(ours) // 2][1]
    chosen = [plan.ranks().get(layer.name, min(layer.shape)) for layer in layers]
    # The Gram products and eigen-solves, side by side as ours, and nothing kept; and as torch
    # alone would do them.
    floor = seconds(lambda: engine.solve(layers, {}, keep=engine.Keep.NOTHING), repeats)
    plain = seconds(
        lambda: [torch.linalg.eigh(W.T @ W if len(W) > W.shape[1] else W @ W.T) for W in weights],
        repeats,
    )
    svd = seconds(lambda: thin(weights, chosen))
    full = seconds(lambda: reference(weights, chosen)) if with_reference else None
    row = {
        "model": name,
        "layers": len(layers),
        **took,
        "floor": floor,
        "above_floor": took["seconds"] / floor,
        "gram_eigh": plain,
        "svd_thin": svd,
        "svd_times": svd / took["seconds"],
        "reference": full,
        "reference_times": None if full is None else full / took["seconds"],
        **_worst(weights[:4], chosen[:4]),
    }
    row["met"] = (
        row["svd_times"] >= SVD_TIMES
        and (full is None or row["reference_times"] >= REFERENCE_TIMES)
        and row["excess_ok"]
    )
    return row


def _worst(weights: Sequence[Tensor], chosen: Sequence[int]) -> Row:
    """The largest excess on one block's weights, and on the same with steep spectra.

    At the planned rank, at half of break-even and at break-even.
    """
    worst = {"energy": 0.0, "optimum": 0.0, "thin": 0.0}
    for weight, rank in zip(weights, chosen, strict=True):
        steep = [weight * torch.logspace(0, -most, weight.shape[1]) for most in (1, 2, 3)]
        for W in (weight, *steep):
            for r in {rank, W.numel() // sum(W.shape) // 2, W.numel() // sum(W.shape)}:
                down, up = decompose(W, keep=r).factors(r)
                of_energy, of_optimum = excess(W, r, down, up)
                worst["energy"] = max(worst["energy"], of_energy)
                worst["optimum"] = max(worst["optimum"], of_optimum)
                ((down, up),) = thin([W], [r])
                worst["thin"] = max(worst["thin"], excess(W, r, down, up)[1])
    return {
        "excess_of_energy": worst["energy"],
        "excess_of_optimum": worst["optimum"],
        "svd_excess_of_optimum": worst["thin"],
        "excess_ok": max(worst["optimum"], worst["energy"]) <= EXCESS,
    }


def scaling(quick: bool, repeats: int) -> Row:
    """Seconds against depth, width and number of layers, and the exponents."""
    base = 48 if quick else 384
    depths = [1, 2, 4] if quick else [2, 4, 8, 16]
    widths = [32, 64, 96] if quick else [192, 384, 768, 1024]
    counts = [4, 8, 16] if quick else [16, 32, 64, 128]

    def cost(shapes: Sequence[tuple[int, int]]) -> float:
        nets = [network(shapes) for _ in range(repeats)]
        times: list[float] = [factorised(net, Fraction(1, 2))[1]["seconds"] for net in nets]
        return sorted(times)[repeats // 2]

    cost(vit_shapes(1, base))
    curves: dict[str, tuple[list[int], list[float]]] = {
        f"blocks of width {base}": (depths, [cost(vit_shapes(n, base)) for n in depths]),
        "width of two blocks": (widths, [cost(vit_shapes(2, w)) for w in widths]),
        f"square layers of width {base}": (counts, [cost([(base, base)] * n) for n in counts]),
    }
    return {
        name: {"sizes": sizes, "seconds": costs, "exponent": exponent(sizes, costs)}
        for name, (sizes, costs) in curves.items()
    }


def process(quick: bool) -> Row:
    """Seconds of the whole command, from a cold start to the artefact."""
    model = "vit_tiny" if quick else "vit_base"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pelacli", "decompose", model, "--weights", "random"]
        command += ["--ratio", "0.5", "--output", f"{folder}/out", "--json"]
        start = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        wall = time.perf_counter() - start
    said = json.loads(done.stdout)
    return {"model": model, "seconds": wall, "inside": said["seconds"], "ratio": said["ratio"]}


def main(arguments: Sequence[str] | None = None) -> Row:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_AsWritten)
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--model", action="append", choices=VITS, help="vit_base and vit_large")
    parser.add_argument("--skip-reference", action="store_true", help="it takes a minute or more")
    parser.add_argument("--ratio", type=Fraction, default=Fraction(1, 2))
    parser.add_argument("--repeats", type=int, default=3, help="of our own ways; the median counts")
    parser.add_argument("--images", type=int, default=256, help="of the calibration")
    parser.add_argument("--batch", type=int, default=16, help="images that are run at a time")
    parser.add_argument("--size", type=int, default=224, help="of the images, pixels")
    parser.add_argument("--language-model", help="directory; calibration is timed on it instead")
    parser.add_argument("--tokens", type=int, default=32768, help="of its texts")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--plot", type=Path, help="write the scaling curves here, as SVG")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs")
    options = parser.parse_args(arguments)
    parts = options.part or PARTS
    models = options.model or (["vit_tiny"] if options.quick else ["vit_base", "vit_large"])
    repeats = 1 if options.quick else options.repeats
    found: Row = {"machine": machine()}
    talk = Console(stderr=True)
    if "speed" in parts:
        talk.print("speed …")
        # The reference takes minutes on larger models, and the target is for ViT-B.
        found["speed"] = [
            speed(name, options.ratio, repeats, not (name == "vit_large" or options.skip_reference))
            for name in models
        ]
    if "calibration" in parts:
        talk.print("calibration …")
        name, images, size = "vit_base", options.images, options.size
        if options.quick:
            name, images, size = "vit_tiny", 4, 32
        batch = min(options.batch, max(1, images // 2))
        found["calibration"] = (
            _calibration.measure(name, images, batch, size)
            if options.language_model is None
            else _calibration.measure_texts(options.language_model, options.tokens)
        )
    if "memory" in parts:
        talk.print("memory …")
        found["memory"] = [
            _memory.in_child(name, calibrated, str(options.ratio))
            for name in models
            for calibrated in (False, True)
        ]
    if "scaling" in parts:
        talk.print("scaling …")
        found["scaling"] = scaling(options.quick, repeats)
    if "process" in parts:
        talk.print("process …")
        found["process"] = process(options.quick)
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot and "scaling" in found:
        curves = {k: (v["sizes"], v["seconds"]) for k, v in found["scaling"].items()}
        options.plot.write_text(plot("Seconds to factorise", curves) + "\n")
    return found


class _AsWritten(argparse.RawDescriptionHelpFormatter):
    """The module's text as it stands."""


def show(found: Row) -> None:
    """Tables of what was measured."""
    console = Console()
    on = found["machine"]
    console.print(
        f"{on['threads']} threads, load before {on['load']:.1f}, "
        f"torch {on['torch']}, malloc settings {on['malloc'] or 'none'}"
    )
    for row in found.get("speed", []):
        times, steps = row["seconds"], row["steps"]
        over = row["reference_times"]
        lines = [
            ("ours", times, ", ".join(f"{k} {v:.2f}" for k, v in steps.items())),
            ("floor: Gram products, eigen-solves", row["floor"], f"× {row['above_floor']:.2f}"),
            ("torch.linalg.eigh of WᵀW", row["gram_eigh"], ""),
            ("torch.linalg.svd, thin", row["svd_thin"], f"{row['svd_times']:.1f} times ours"),
        ]
        if over is not None:
            lines.append(("reference (NumPy, full)", row["reference"], f"{over:.1f} times ours"))
        _table(console, f"{row['model']}, {row['layers']} layers", lines, ("", "seconds", ""))
        console.print(
            f"largest excess {row['excess_of_energy']:.1e} of the weight's energy, "
            f"{row['excess_of_optimum']:.1e} of the optimal error "
            f"(thin SVD {row['svd_excess_of_optimum']:.1e}); target met: {row['met']}\n"
        )
    if "calibration" in found:
        row = found["calibration"]
        costs = [(key, row["seconds"][key], f"{row['times'][key]:.2f}") for key in row["seconds"]]
        _table(console, row["what"], costs, ("", "seconds", "× forward"))
        targets = ", ".join(f"{key} {most:g}" for key, most in _calibration.TARGETS.items())
        console.print(f"targets ({targets}; for 256 images or more) met: {row['met']}\n")
    for row in found.get("memory", []):
        title = f"{row['model']}, {'calibrated' if row['calibrated'] else 'plain'}: peak memory"
        _table(console, title, list(row["parts"].items()), ("", "MiB"))
        console.print(f"target met: {row['met']}\n")
    if "scaling" in found:
        sizes = [
            (name, *(f"{s}: {t:.3g}" for s, t in zip(v["sizes"], v["seconds"], strict=True)))
            for name, v in found["scaling"].items()
        ]
        columns = ("seconds over", *([""] * (max(map(len, sizes)) - 1)))
        _table(console, "scaling", sizes, columns)
        for name, v in found["scaling"].items():
            console.print(f"{name}: exponent {v['exponent']:.2f}")
    if "process" in found:
        row = found["process"]
        console.print(
            f"pela decompose {row['model']}: {row['seconds']:.1f} s, "
            f"of which {row['inside']:.1f} s without start"
        )


def _table(
    console: Console, title: str, lines: Sequence[Sequence[Any]], columns: Sequence[str]
) -> None:
    table = Table(*columns, title=title, title_justify="left")
    for line in lines:
        table.add_row(*(f"{c:.2f}" if isinstance(c, float) else str(c) for c in line))
    console.print(table)


if __name__ == "__main__":
    main()
