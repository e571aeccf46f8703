"""What a step of healing costs beside a plain training step and beside the reference's way.

    OMP_NUM_THREADS=2 python benchmarks/pretrain_step.py --json step.json   # ViT-B, batch 8
    python benchmarks/pretrain_step.py --device cuda --precision bf16 --batch 128 --multiple 8
    python benchmarks/pretrain_step.py --quick           # tiny shapes, seconds: does it still run?

Seconds per step (forward, backward, update) are medians of rounds in which the ways take turns, and
ratios are medians of the rounds' ratios: a machine that slows down slows all of them. Peak memory
is that of a fresh process per way, above what the interpreter holds after a tiny step of the same
kind. The floors are what FLOPs alone would give, by torch's counter. Images, weights and factors
are random; the low-rank model has the paper's uniform ranks at ``--ratio`` of the layers.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _common import MIB, machine, peak, reset_peak, resident
from _steps import WAYS, Bench, Shape
from rich.console import Console

from pelacli.system import malloc

# The targets: the reference's seconds over ours, ours over dense, dense inference over low-rank.
FASTER, NO_DEARER, THROUGHPUT = 1.6, 1.0, 1.6
Row = dict[str, Any]
talk = Console(stderr=True, highlight=False)


def main(argv: Sequence[str] | None = None) -> Row:
    """Measure, print the tables, give the figures."""
    options = arguments(argv)
    malloc.large_pages()  # as the command line does
    shape = _shape(options)
    if options.alone:
        print(json.dumps(alone(shape, options.alone)))
        return {}
    talk.print("steps …")
    found: Row = {"machine": machine(shape.device), "shape": asdict(shape), **timed(shape, options)}
    talk.print("memory …")
    found["memory"] = {way: in_child(way, options.argv) for way in WAYS}
    found["targets"] = targets(found)
    print(table(found))
    if options.json:
        text = json.dumps(found, indent=1, default=str)
        options.json.write_text(text + "\n", encoding="utf-8")
    return found


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; ``argv`` keeps it as it was, for the child processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="vit_base", help="a timm ViT")
    parser.add_argument("--size", type=int, default=224, help="of the images, pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--ratio", type=Fraction, default=Fraction(1, 2), help="of the layers")
    parser.add_argument("--multiple", type=int, default=1, help="of which the ranks are multiples")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of training steps")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="no", choices=("no", "bf16"))
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs")
    parser.add_argument("--alone", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.argv = list(sys.argv[1:] if argv is None else argv)
    if options.quick:
        options.size, options.batch, options.repeats = 32, 2, 2
    return options


def _shape(options: argparse.Namespace) -> Shape:
    keys = ("model", "size", "batch", "ratio", "multiple", "device", "precision")
    return Shape(**{key: getattr(options, key) for key in keys}, small=options.quick)


def timed(shape: Shape, options: argparse.Namespace) -> Row:
    """Seconds and FLOPs of the training steps and of inference."""
    bench = Bench(shape)
    # The counted call is a warm-up too: the optimizers have their moments afterwards.
    flops = {way: bench.flops(step) for way, step in bench.steps.items()}
    steps = rounds(bench.steps, options.repeats, shape.device)
    calls = {way: partial(bench.infer, way) for way in ("dense", "ours")}
    forward = {way: bench.flops(call) for way, call in calls.items()}
    for call in calls.values():
        call()
    inference = rounds(calls, 3 * options.repeats, shape.device)
    return {
        "steps": _figures(steps, flops),
        "inference": _figures(inference, forward),
    }


def rounds(
    runs: Mapping[str, Callable[[], object]], repeats: int, device: str
) -> dict[str, list[float]]:
    """Seconds of every call, the calls taking turns; the order turns too."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for i in range(repeats):
        if i:  # on a busy machine one wants to know
            last = ", ".join(f"{name} {found[-1]:.3g} s" for name, found in times.items())
            talk.print(f"round {i} of {repeats}: {last}", soft_wrap=True)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            _wait(device)
            start = time.perf_counter()
            runs[name]()
            _wait(device)
            times[name].append(time.perf_counter() - start)
    return times


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _figures(times: Mapping[str, Sequence[float]], flops: Mapping[str, int]) -> Row:
    """Per way: seconds, FLOPs, and both as multiples of the dense model's."""
    return {
        way: {
            "seconds": statistics.median(found),
            "all": list(found),
            "flops": flops[way],
            "times_dense": ratio(times, way, "dense"),
            "floor": flops[way] / flops["dense"],
        }
        for way, found in times.items()
    }


def ratio(times: Mapping[str, Sequence[float]], above: str, below: str) -> float:
    """Median over the rounds of how many times as long one call took as another."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def in_child(way: str, argv: Sequence[str]) -> Row:
    """Peak memory of a way's steps in a fresh process, MiB."""
    command = [sys.executable, __file__, *argv, "--alone", way]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: Row = json.loads(done.stdout)
    return found


def alone(shape: Shape, way: str) -> Row:
    """Peak memory of this process over three steps, above the interpreter's own, MiB.

    ``state`` is what weights, gradients and moments take between steps: no step can need less.
    """
    tiny = replace(shape, model="vit_tiny", size=32, batch=2, small=True)
    Bench(tiny, way).steps[way]()  # loads what is loaded on first use
    gc.collect()
    malloc.trim()
    cuda = shape.device == "cuda"
    own = torch.cuda.memory_allocated() / MIB if cuda else resident()
    bench = Bench(shape, way)
    gc.collect()
    malloc.trim()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()
    for _ in range(3):
        bench.steps[way]()
    highest = torch.cuda.max_memory_allocated() / MIB if cuda else peak()
    trained = sum(p.nbytes for p in bench.trained[way].parameters())
    frozen = 0 if way == "dense" else sum(p.nbytes for p in bench.teacher.parameters())
    state = 4 * trained + frozen
    return {"way": way, "peak": highest - own, "own": own, "state": state / MIB}


def targets(found: Row) -> dict[str, Row]:
    """Name → figure, floor or ceiling by FLOPs, target, met."""
    steps, inference, memory = found["steps"], found["inference"], found["memory"]
    times = {way: figures["all"] for way, figures in steps.items()}
    faster = ratio(times, "reference", "ours")
    dearer = steps["ours"]["times_dense"]
    through = ratio({w: f["all"] for w, f in inference.items()}, "dense", "ours")
    allowed = steps["reference"]["flops"] / steps["ours"]["flops"]
    least = min(memory[way]["peak"] for way in ("dense", "reference"))
    lean = memory["ours"]["peak"]
    return {
        "reference's seconds / ours": _target(faster, allowed, f"≥ {FASTER}", faster >= FASTER),
        "our seconds / dense step": _target(
            dearer, steps["ours"]["floor"], f"≤ {NO_DEARER}", dearer <= NO_DEARER
        ),
        "our peak memory / the least of both": _target(lean / least, None, "< 1", lean < least),
        "low-rank throughput / dense": _target(
            through, 1 / inference["ours"]["floor"], f"≥ {THROUGHPUT}", through >= THROUGHPUT
        ),
    }


def _target(figure: float, by_flops: float | None, wanted: str, met: bool) -> Row:
    return {"figure": figure, "by_flops": by_flops, "target": wanted, "met": met}


def table(found: Row) -> str:
    """Markdown: the ways, inference, and the targets."""
    shape, machine_ = found["shape"], found["machine"]
    lines = [
        f"{shape['model']} at {shape['size']} px, batch {shape['batch']}, ratio {shape['ratio']} "
        f"of the layers, ranks multiples of {shape['multiple']}, {shape['device']}, "
        f"precision {shape['precision']}; "
        f"{machine_['threads']} threads, load before {machine_['load']:.1f}, "
        f"torch {machine_['torch']}",
        "",
        "| step | seconds | × dense | × dense by FLOPs | peak MiB | of it state |",
        "|---|---|---|---|---|---|",
    ]
    for way, row in found["steps"].items():
        memory = found["memory"][way]
        lines.append(
            f"| {way} | {row['seconds']:.3g} | {row['times_dense']:.2f} | {row['floor']:.2f} "
            f"| {memory['peak']:.0f} | {memory['state']:.0f} |"
        )
    lines += ["", "| inference | seconds | × dense | × dense by FLOPs |", "|---|---|---|---|"]
    for way, row in found["inference"].items():
        name = "low-rank" if way == "ours" else way
        lines.append(
            f"| {name} | {row['seconds']:.3g} | {row['times_dense']:.2f} | {row['floor']:.2f} |"
        )
    lines += ["", "| | measured | by FLOPs alone | target | |", "|---|---|---|---|---|"]
    for name, row in found["targets"].items():
        floor = "" if row["by_flops"] is None else f"{row['by_flops']:.2f}"
        met = "met" if row["met"] else "not met"
        lines.append(f"| {name} | {row['figure']:.2f} | {floor} | {row['target']} | {met} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
