"""Is low rank faster on this GPU? Inference, a step of healing, and a language model's prefill.

    python benchmarks/gpu.py --out gpu.jsonl                # meant for ten minutes on an H100
    python benchmarks/gpu.py --out gpu.jsonl --table        # what is there, and the targets
    python benchmarks/gpu.py --quick --out quick.jsonl      # tiny models on the CPU: does it run?

Everything has random weights and runs in bf16. Each row times one low-rank model in turns with its
dense original: medians, quartiles, ratio, and the peak memory of both. Rows are appended to
``--out`` as they come; started again, the run does what is missing. After ``--minutes`` it begins
no more.

``reference`` has the paper's ranks (uniform factors, to the rank), ``factors`` and ``pivots`` store
half of each layer in ranks of eights, and ``latency`` is planned by the time of each layer on this
device. Healing is a step of teacher, student, losses, backward and optimizer beside a training step
of the dense model, by `pretrain_step.py`'s means.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _common import machine
from _gpu_subjects import LLAMAS, VARIANTS, VITS, Subject, language, vision
from _steps import Bench, Shape
from rich.console import Console
from torch import nn

from pelacli.measure import flops, latency
from pelacli.messages import one_line
from pelacli.system.turns import Timing, in_turns
from pelacli.train.compilation import compiled_blocks

# The targets: dense milliseconds over ours; healing's over a dense step's.
NEVER_SLOWER, COMPILED, HEALING = 1.0, 1.3, 1.0
TEXTS = ((1, 2048), (8, 512))  # (texts, tokens)
Row = dict[str, Any]
talk = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Cell:
    """What one row is about.

    Attributes:
        work: "inference", "prefill" or "healing".
        variant: of `VARIANTS`; of healing, "ours" or "reference".
        batch: samples, or texts and tokens.
    """

    work: str
    model: str
    variant: str
    compiled: bool
    batch: tuple[int, ...]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, append it, print the tables."""
    args = arguments(argv)
    if not args.table:
        end = time.perf_counter() + 60 * args.minutes
        run(args, lambda: time.perf_counter() < end)
    print(table(read(args.out)))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--device", default="cuda", help="the default is cuda")
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--minutes", type=float, default=10, help="after which no row is begun")
    parser.add_argument("--seconds", type=float, default=1, help="of timing, per model")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--table", action="store_true", help="measure nothing, print")
    parser.add_argument("--quick", action="store_true", help="tiny models, on the CPU, eager")
    args = parser.parse_args(argv)
    if args.quick:
        args.device, args.batch, args.seconds = "cpu", 2, 0
    elif not args.table and not torch.accelerator.is_available():
        parser.error("there is no GPU here; --quick tries the script on the CPU")
    return args


def cells(batch: int, *, quick: bool) -> Iterator[Cell]:
    """All rows, the most telling ones first."""
    texts = ((1, 16),) if quick else TEXTS
    ways = (False,) if quick else (False, True)
    for compiled in ways:
        for model in VITS:
            for variant in VARIANTS:
                yield Cell("inference", model, variant, compiled, (batch,))
    for compiled in ways:
        for model in VITS:
            for way in ("ours", "reference"):
                yield Cell("healing", model, way, compiled, (batch,))
    for compiled in ways:
        for model in LLAMAS:
            for shape in texts:
                for variant in VARIANTS:
                    yield Cell("prefill", model, variant, compiled, shape)


def run(args: argparse.Namespace, has_time: Callable[[], bool]) -> None:
    """Measure each cell that ``--out`` has no row of, from this device."""
    about = machine(args.device) | {"quick": args.quick}
    done = {name(row) for row in read(args.out) if is_done(row, about)}
    for cell in cells(args.batch, quick=args.quick):
        title = name(asdict(cell))
        if title in done or args.only not in title:
            continue
        if not has_time():
            talk.print("the time is up; start it again for the rest")
            return
        talk.print(f"{title} …", soft_wrap=True)
        row = {**asdict(cell), "machine": about, **measured(cell, args)}
        append(row, args.out)


def append(row: Row, file: Path) -> None:
    """Add a row, on a line of its own also where the last one was cut off."""
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    start = "\n" if before and not before.endswith("\n") else ""
    with file.open("a", encoding="utf-8") as out:
        out.write(f"{start}{json.dumps(row)}\n")


def read(file: Path) -> list[Row]:
    """The rows of a file; a last line that was cut off is none."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            talk.print(f"{file}: passes over a line that is cut off", soft_wrap=True)
    return rows


def is_done(row: Row, about: Row) -> bool:
    """Whether a row has figures of this device."""
    same = all(row["machine"][key] == about[key] for key in ("device", "torch", "quick"))
    return same and "error" not in row


def name(row: Row) -> str:
    """What a row is about, in words."""
    batch = "×".join(map(str, row["batch"]))
    how = "compiled" if row["compiled"] else "eager"
    return f"{row['work']} {row['model']} {batch} {how} {row['variant']}"


def measured(cell: Cell, args: argparse.Namespace) -> Row:
    """The figures of a cell, or the error: memory may be short for one and not for the next."""
    torch.manual_seed(0)
    torch.compiler.reset()
    try:
        return healing(cell, args) if cell.work == "healing" else forward(cell, args)
    except Exception as error:  # whatever a kernel raises is said and must not end the run
        talk.print(f"failed: {one_line(error)}", soft_wrap=True)
        return {"error": one_line(error)}
    finally:
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()


def forward(cell: Cell, args: argparse.Namespace) -> Row:
    """A forward pass of a variant beside the dense model's."""
    if cell.work == "prefill":
        texts, tokens = cell.batch
        subject = language(cell.model, (texts, tokens), args.device, tiny=args.quick)
    else:
        subject = vision(cell.model, cell.batch[0], args.device, tiny=args.quick)
    made = VARIANTS[cell.variant](subject, cell.compiled)
    low = made.module
    modules = [low, subject.module]
    share = _flops(low, subject) / _flops(subject.module, subject)
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(compiled_blocks(module, on=cell.compiled))
        timings = latency.side_by_side(
            modules, subject.inputs, _call, seconds=args.seconds, device=args.device
        )
        device = torch.device(args.device)
        peaks = [latency.peak_bytes(m, subject.inputs, _call, device) for m in modules]
    memory = {"peak": peaks[0], "dense_peak": peaks[1]}
    return {**figures(*timings), "flops": share, **memory, **made.facts}


def _call(module: nn.Module, inputs: Any) -> Any:
    return module(inputs)


def _flops(module: nn.Module, subject: Subject) -> int:
    """FLOPs of one sample."""
    return flops.count(module, [], lambda m: m(subject.sample)).total


def healing(cell: Cell, args: argparse.Namespace) -> Row:
    """A step of healing beside a training step of the dense model."""
    shape = Shape(
        cell.model,
        32 if args.quick else 224,
        cell.batch[0],
        multiple=8 if cell.variant == "ours" else 1,
        device=args.device,
        precision="bf16",
        small=args.quick,
    )
    ways = (cell.variant, "dense")
    peaks, work = {}, {}
    benches = {way: Bench(shape, way) for way in ways}
    wait = latency.waiting(args.device)
    with ExitStack() as stack:
        for way, bench in benches.items():
            for module in {bench.trained[way], bench.teacher}:
                stack.enter_context(compiled_blocks(module, on=cell.compiled))
        for way, bench in benches.items():
            work[way] = bench.flops(bench.steps[way]) if not cell.compiled else None
            for _ in range(2):
                bench.steps[way]()
            peaks[way] = _peak_of_step(bench.steps[way], bench, way, args.device)
        steps = [benches[way].steps[way] for way in ways]
        rounds = in_turns(steps, args.seconds, wait=wait)
    timings = {way: Timing.of(seconds) for way, seconds in zip(ways, rounds, strict=True)}
    own, dense = work[cell.variant], work["dense"]
    return figures(timings[cell.variant], timings["dense"]) | {
        "flops": None if own is None or dense is None else own / dense,
        "peak": peaks[cell.variant],
        "dense_peak": peaks["dense"],
    }


def _peak_of_step(step: Callable[[], object], bench: Bench, way: str, device: str) -> int | None:
    """Bytes that a step takes at most: models, gradients and moments included."""
    if device != "cuda":
        return None
    modules = {bench.trained[way], bench.teacher}
    trained = sum(p.nbytes for p in bench.trained[way].parameters())
    weights = sum(p.nbytes for module in modules for p in module.parameters())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before + weights + 2 * trained  # two moments


def figures(own: Timing, dense: Timing) -> Row:
    """Milliseconds of both, and their ratio."""
    return {"ms": asdict(own), "dense_ms": asdict(dense), "speed": dense.median / own.median}


def targets(rows: Sequence[Row]) -> list[tuple[str, float | None, str, bool]]:
    """(what, the worst figure that was measured, target, met)."""

    def speeds(**wanted: Any) -> list[float]:
        return [
            row["speed"]
            for row in rows
            if "speed" in row and all(row[key] in value for key, value in wanted.items())
        ]

    forward = ("inference", "prefill")
    plan = speeds(work=forward, variant=("latency",))
    half = speeds(work=("inference",), variant=("factors", "pivots"), compiled=(True,))
    steps = speeds(work=("healing",), variant=("ours",))
    heal = 1 / min(steps) if steps else None
    return [
        _target("latency plan, speed / dense", plan, NEVER_SLOWER),
        _target("half the FLOPs compiled, speed / dense", half, COMPILED),
        ("healing step, time / dense", heal, f"≤ {HEALING}", heal is not None and heal <= HEALING),
    ]


def _target(what: str, speeds: list[float], least: float) -> tuple[str, float | None, str, bool]:
    worst = min(speeds, default=None)
    return what, worst, f"≥ {least}", worst is not None and worst >= least


def table(rows: Sequence[Row]) -> str:
    """Markdown: a table for each device, and the targets below it."""
    parts = []
    for device in dict.fromkeys(row["machine"]["device"] for row in rows):
        of_device = [row for row in rows if row["machine"]["device"] == device]
        parts += [f"## {device}, torch {of_device[0]['machine']['torch']}, bf16", ""]
        parts += [*_measured_lines(of_device), "", *_target_lines(of_device), ""]
    return "\n".join(parts)


def _measured_lines(rows: Sequence[Row]) -> Iterator[str]:
    yield "| | ms (quartiles) | dense ms | speed / dense | FLOPs / dense | peak MiB | dense |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for row in {name(row): row for row in rows}.values():  # of repeated ones the last
        if "error" in row:
            yield f"| {name(row)} | failed: {row['error']} | | | | | |"
            continue
        share = "–" if row["flops"] is None else f"{row['flops']:.2f}"
        yield (
            f"| {name(row)} | {_text(row['ms'])} | {_text(row['dense_ms'])} | {row['speed']:.2f} "
            f"| {share} | {_mib(row['peak'])} | {_mib(row['dense_peak'])} |"
        )


def _target_lines(rows: Sequence[Row]) -> Iterator[str]:
    yield "| target | the worst | wanted | |"
    yield "|---|---:|---:|---|"
    for what, figure, wanted, met in targets(rows):
        text = "–" if figure is None else f"{figure:.2f}"
        state = "not measured" if figure is None else "met" if met else "not met"
        yield f"| {what} | {text} | {wanted} | {state} |"


def _text(timing: dict[str, float]) -> str:
    return f"{timing['median']:.3g} ({timing['lower']:.3g}–{timing['upper']:.3g})"


def _mib(count: int | None) -> str:
    return "–" if count is None else f"{count / 2**20:.0f}"


if __name__ == "__main__":
    main()
