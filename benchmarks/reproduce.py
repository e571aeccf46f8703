"""The paper's claim on real pretrained weights: cut, heal, fine-tune, against the dense model.

    python benchmarks/reproduce.py --model DINOV2 --out reproduce.jsonl   # under 3 h on two cores
    python benchmarks/reproduce.py --model DINOV2 --out bf16.jsonl --precision bf16   # also CPUs
    python benchmarks/reproduce.py --model DINOV2 --out gpu.jsonl --device cuda --precision bf16
    python benchmarks/reproduce.py --plan                # the cells and what they would take
    python benchmarks/reproduce.py --table reproduce.jsonl
    python benchmarks/reproduce.py --quick               # a tiny random model, under a minute

DINOV2 is a directory with a headless image model (DINOv2 ViT-S/14). It is fine-tuned on
Fashion-MNIST (the Debian package dataset-fashion-mnist) and is then the dense teacher. At each
ratio of the layers' parameters: plain SVD; the paper's healing of it (uniform ranks, cross-entropy,
feature and perturbation loss); pela's start (calibrated and corrected on unlabelled images) and its
healing in a tenth of the steps and in all; then fine-tuning on another task, the digits. The
backbone itself is also healed without labels and judged by a linear probe.

Every cell is a line appended to ``--out``. Started again, the run goes on where it stopped, in the
middle of a training too: models and checkpoints are in ``--work``. Several processes may share one
``--work``, each with cells and an ``--out`` of its own, once the teacher is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from _cells import METHODS, Cell, Settings, Workshop, cells
from _common import machine
from _fashion import FASHION, VALIDATION, folders, tiny
from _quick import tiny_backbone
from _rows import Row, append, read
from _subjects import idx_images
from rich.console import Console

from pelacli.artefact import loading
from pelacli.errors import PelaError, RequestError
from pelacli.manifest import digests
from pelacli.ranks.forms import CHOICES

# Points that the healed model may lose against the dense one, by ratio.
ALLOWED = {"1/2": 0.2, "1/3": 0.6}
PROBED = 4000  # images that the probe's features are made of
talk = Console(stderr=True, highlight=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for and print the table."""
    args = arguments(argv)
    if args.plan:
        print(plan(args))
    elif args.table is not None:
        print(table(read(args.table)))
    elif args.quick:
        with tempfile.TemporaryDirectory() as folder:
            print(table(run(quick(args, Path(folder)))))
    else:
        print(table(run(args)))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="directory of a headless image model")
    parser.add_argument("--fashion", type=Path, default=FASHION, help="folder of the idx files")
    parser.add_argument("--size", type=int, default=98, help="pixels a side")
    parser.add_argument("--steps", type=int, default=200, help="N, of healing")
    parser.add_argument("--teacher-steps", type=int, default=400, help="of the dense model")
    parser.add_argument("--transfer-steps", type=int, default=80, help="on the other task")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--samples", type=int, default=512, help="of calibration, unlabelled")
    parser.add_argument("--multiple", type=int, help="of which ours has ranks; unset: as pela does")
    parser.add_argument("--form", default="auto", choices=CHOICES, help="of ours' layers")
    parser.add_argument("--train-images", type=int, default=20000, help="training sees these")
    parser.add_argument("--test-images", type=int, default=3000)
    parser.add_argument("--ratios", default="2/3,1/2,1/3", help="of the layers' parameters")
    parser.add_argument("--seeds", default="0,1,2", help="at 1/2; elsewhere the first of them")
    parser.add_argument("--methods", help="some of them, separated by ';'")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda")
    parser.add_argument("--precision", default="no", choices=("no", "fp16", "bf16"))
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--out", type=Path, help="JSON lines")
    parser.add_argument("--work", type=Path, help="models and checkpoints; beside --out if unset")
    parser.add_argument("--keep", action="store_true", help="keep the models of all cells")
    parser.add_argument("--plan", action="store_true", help="print cells and times, run nothing")
    parser.add_argument("--rate", type=float, default=70.0, help="images/s forward, for --plan")
    parser.add_argument("--table", type=Path, help="print the table of a file and stop")
    parser.add_argument("--quick", action="store_true", help="a tiny random model, under a minute")
    args = parser.parse_args(argv)
    if not (args.plan or args.table or args.quick) and (args.model is None or args.out is None):
        parser.error("give --model and --out, or --plan, --table or --quick")
    for name in wanted(args):
        if name not in METHODS:
            parser.error(f"--methods {name}: there is {'; '.join(METHODS)}")
    return args


def wanted(args: argparse.Namespace) -> list[str]:
    """Names of the methods to run."""
    names: list[str] = args.methods.split(";") if args.methods else list(METHODS)
    return [name.strip() for name in names]


def listed(args: argparse.Namespace) -> list[Cell]:
    """The cells that are asked for."""
    seeds = [int(seed) for seed in args.seeds.split(",")]
    return cells(args.ratios.split(","), seeds, wanted(args))


def quick(args: argparse.Namespace, folder: Path) -> argparse.Namespace:
    """Everything at a tiny size, with a random model and digits for Fashion-MNIST."""
    args.model, args.fashion = str(tiny_backbone(folder / "model")), tiny(folder)
    args.out, args.work = args.out or folder / "quick.jsonl", args.work or folder / "work"
    args.size, args.steps, args.teacher_steps, args.transfer_steps = 28, 10, 10, 2
    args.batch, args.samples, args.train_images, args.test_images = 8, 16, 200, 50
    args.seeds = ",".join(args.seeds.split(",")[:2])
    return args


def run(args: argparse.Namespace) -> list[Row]:
    """The cells that are not done yet, one after the other; all rows.

    Raises:
        RequestError: ``--out`` holds results of other settings, or of another teacher.
    """
    work = args.work or args.out.with_suffix(".work")
    work.mkdir(parents=True, exist_ok=True)
    images = folders(args.fashion, work, train=args.train_images, tests=args.test_images)
    settings = Settings(
        args.model, str(images), args.size, args.steps, args.teacher_steps, args.transfer_steps,
        args.samples, args.train_images, args.test_images, args.batch, args.precision,
        args.multiple, args.form,
    )  # fmt: skip
    stamp = json.loads(json.dumps(settings.stamp()))
    rows = read(args.out) if args.out.exists() else []
    healing = {cell.key: cell.healing for cell in listed(args)}
    if any(
        row["settings"] != stamp or row["healing"] != healing.get(_key(row), row["healing"])
        for row in rows
    ):
        raise RequestError(f"{args.out}: holds results of other settings; name another file")
    done = {_key(row) for row in rows}
    left = [cell for cell in listed(args) if cell.key not in done]
    shop = Workshop(settings, work, args.device, args.workers)
    teacher = None
    if any(not cell.method.backbone for cell in left):
        teacher = digests.weights_digest(Path(shop.teacher()))[:16]
        if any(row["teacher"] not in (None, teacher) for row in rows):
            raise RequestError(
                f"{args.out}: its results are of another teacher than that in {work}; name its "
                "folder with --work, or another --out"
            )
    probe = _probe(args, work)
    for i, cell in enumerate(left):
        start = time.perf_counter()
        row: Row = {"method": cell.name, "ratio": cell.ratio, "seed": cell.seed}
        row |= shop.run(cell, probe, keep=args.keep)
        row |= {
            "wall_seconds": time.perf_counter() - start,
            "healing": cell.healing,
            "settings": stamp,
            "teacher": None if cell.method.backbone else teacher,
            "machine": machine(args.device),
        }
        rows.append(row)
        append(args.out, row)
        figure = row.get("accuracy", row.get("probe"))
        talk.print(
            f"{i + 1}/{len(left)} {cell.name} {cell.ratio} seed {cell.seed}: {figure:.2f} %, "
            f"{row['wall_seconds'] / 60:.1f} min",
            soft_wrap=True,
        )
    return rows


def _key(row: Row) -> tuple[str, str, int]:
    return row["method"], row["ratio"], row["seed"]


def _probe(args: argparse.Namespace, work: Path) -> Callable[[str], float]:
    """Points of a linear probe that is fitted on the dense backbone's features, when first asked.

    Its dense features are kept in the work folder.
    """
    subjects: list[Any] = []

    def measure(path: str) -> float:
        if not subjects:
            backbone, _ = loading.open(args.model)
            tests, cache = args.test_images, work / "features"
            subjects.append(
                idx_images(backbone, args.fashion, tests=tests, dev=False, cache=cache,
                           size=args.size)
            )  # fmt: skip
        module = loading.open(path)[0].module
        return float(subjects[0].measure_module(module)["metric"])

    return measure


def plan(args: argparse.Namespace) -> str:
    """Every cell with its minutes, counted in forward passes of the dense model.

    A backward pass costs two forward passes; a low-rank model at ratio q about 0.05 + 0.95 q of
    the dense one; healing also runs the teacher; calibration and correction together cost about
    ten forward passes over their samples. What starts share is counted where it is met first.
    """
    image = 1 / args.rate / 60
    lines = [f"{args.rate:g} images/s forward at {args.size} px, batch {args.batch}", ""]
    total = image * args.batch * 3 * args.teacher_steps
    lines.append(f"{total:6.1f} min  the teacher: {args.teacher_steps} steps")
    started: set[tuple[Any, ...]] = set()
    for cell in listed(args):
        method, cost = cell.method, 0.0
        size = 1.0 if method.start is None else 0.05 + 0.95 * float(Fraction(cell.ratio))
        begin = (method.start, method.backbone, cell.ratio, cell.seed)
        if method.start == "ours" and begin not in started:
            cost += 10 * args.samples
        started.add(begin)
        if method.train is not None:
            loss = method.loss or {"feature": 0.0, "logits": 0.0}
            teacher = float(bool(loss["feature"] or loss["logits"]))
            steps = max(1, int(args.steps * method.share))
            cost += steps * args.batch * (teacher + 3 * size) + VALIDATION * (1 + 2 * size)
        if method.transfer:
            cost += args.transfer_steps * args.batch * 3 * size + 360 * size
        cost += args.test_images * size + (PROBED if cell.name == "backbone: dense" else 0)
        total += image * cost
        lines.append(f"{image * cost:6.1f} min  {cell.name}, ratio {cell.ratio}, seed {cell.seed}")
    return "\n".join([*lines, f"{total:6.1f} min  in all, {total / 60:.1f} hours"])


def table(rows: Sequence[Row]) -> str:
    """Markdown: accuracy, then the other task, then the probe; a column per ratio; the targets."""
    if not rows:
        return "no results yet"
    settings = rows[0]["settings"]
    ratios = sorted({r["ratio"] for r in rows if r["ratio"] != "1"}, key=Fraction, reverse=True)
    parts = [
        f"Accuracy on {settings['tests']} test images, %; N = {settings['steps']} steps of "
        f"{settings['batch']} images; mean ± standard deviation over seeds (their number)."
    ]
    for title, key in (
        ("on Fashion-MNIST", "accuracy"),
        ("then fine-tuned on digits", "transfer"),
        ("backbone, linear probe", "probe"),
    ):
        lines = [f"| {title} | {' | '.join(ratios)} |", "|---" * (len(ratios) + 1) + "|"]
        for name, method in METHODS.items():
            some = [r for r in rows if r["method"] == name and r.get(key) is not None]
            columns = ["1"] * len(ratios) if method.start is None else ratios
            values = [[r[key] for r in some if r["ratio"] == ratio] for ratio in columns]
            if method.start is None and key == "accuracy":
                values = [v[:1] for v in values]  # one teacher, whatever the seed
            found = [_figures(v) for v in values]
            if any(found):
                label = name.removeprefix("backbone: ")
                lines.append(f"| {label} | {' | '.join(found)} |")
        if len(lines) > 2:
            parts.append("\n".join(lines))
    told = targets(rows)
    if told:
        lines = ["| target | wanted | measured | |", "|---|---|---|---|"]
        parts.append("\n".join(lines + [f"| {' | '.join(line)} |" for line in told]))
    return "\n\n".join(parts)


def _figures(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f} ({len(values)})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def targets(rows: Sequence[Row]) -> list[tuple[str, str, str, str]]:
    """(target, wanted, measured, met or not) of all that can be told from the rows."""

    def mean(name: str, ratio: str) -> float | None:
        some = [r["accuracy"] for r in rows if (r["method"], r["ratio"]) == (name, ratio)]
        return statistics.fmean(some) if some else None

    found = []
    dense = mean("dense", "1")
    for ratio, allowed in ALLOWED.items():
        ours = mean("ours, N steps", ratio)
        if dense is not None and ours is not None:
            drop = dense - ours
            met = "met" if drop <= allowed else "not met"
            found.append((f"points lost at {ratio}, N steps", f"≤ {allowed}", f"{drop:.2f}", met))
    ratios = {row["ratio"] for row in rows} - {"1"}
    for ratio in sorted(ratios, key=Fraction, reverse=True):
        early, paper = mean("ours, N/10 steps", ratio), mean("the paper's, N steps", ratio)
        if early is not None and paper is not None:
            met = "met" if early >= paper else "not met"
            what = f"ours at N/10 against the paper's at N, {ratio}"
            found.append((what, f"≥ {paper:.2f}", f"{early:.2f}", met))
    return found


if __name__ == "__main__":
    try:
        main()
    except PelaError as error:
        sys.exit(f"reproduce: {error}")
