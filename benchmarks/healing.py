"""What healing gains with pela's own settings, and what the best rate by hand would have gained.

    python benchmarks/healing.py --model DINOV2 --size 98 --out healing-dinov2.jsonl
    python benchmarks/healing.py --model MINILM --sentences --out healing-minilm.jsonl
    python benchmarks/healing.py --model SMOLLM2 --texts FIT TEST --out smollm2.jsonl
    python benchmarks/healing.py --table healing-dinov2.jsonl
    python benchmarks/healing.py --quick

DINOV2 is a directory with an image model, with or without classes, for Fashion-MNIST (the Debian
package dataset-fashion-mnist). MINILM is a directory with a sentence encoder; its sentences are
what scikit-learn says about its parts. SMOLLM2 is a directory with a causal language model, and the
texts are files with one a line; its samples are blocks of 512 tokens.

Each cell is a recipe with nothing set but model, data, size and steps: `pela decompose` calibrated
on the training samples, then `pela pretrain`. "pela" leaves the rate to pela, the other settings
name one. All are judged on test samples that neither training nor the choice of the rate saw: the
divergence from the dense model in nats where it gives classes or words, else the relative error of
its output. Cells are appended to ``--out`` as they come; started again, the run goes on where it
stopped, in the middle of a training too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from _cells import begin_with
from _common import machine
from _fashion import FASHION, folders, tiny
from _quick import tiny_backbone
from _rows import Row, append, read
from _subjects import scikit_sentences
from rich.console import Console

from pelacli.errors import PelaError, RequestError
from pelacli.manifest import document
from pelacli.recipe import layout
from pelacli.recipe.evaluation import Evaluation, NamedModel
from pelacli.recipe.schema import Recipe
from pelacli.steps import eval as steps_eval
from pelacli.steps import pipeline

PELA = "pela"
VALIDATION_TEXTS, TEST_TEXTS = 100, 300  # sentences, or lines of a language model's test file
talk = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Cell:
    """One line of the results.

    Attributes:
        setting: `PELA`, or a rate.
    """

    samples: int
    ratio: str
    seed: int
    setting: str

    @property
    def start(self) -> str:
        """A name for what cells with the same start share."""
        return f"{self.samples}-{self.ratio.replace('/', '_')}-{self.seed}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for and print the table."""
    args = arguments(argv)
    if args.table is not None:
        print(table(read(args.table)))
    elif args.quick:
        with tempfile.TemporaryDirectory() as folder:
            print(table(run(quick(args, Path(folder)))))
    else:
        print(table(run(args)))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="directory of the dense model")
    parser.add_argument("--fashion", type=Path, default=FASHION, help="folder of the idx files")
    parser.add_argument("--sentences", action="store_true", help="of scikit-learn, not images")
    parser.add_argument("--texts", nargs=2, type=Path, metavar=("FIT", "TEST"))
    parser.add_argument("--size", type=int, help="pixels a side")
    parser.add_argument("--samples", default="256,2000,20000", help="to train on")
    parser.add_argument("--ratios", default="2/3,1/2,1/3", help="of the layers' parameters")
    parser.add_argument("--seeds", default="0,1,2", help="at 1/2; elsewhere the first of them")
    parser.add_argument("--rates", default="1e-6,1e-5,1e-4", help="by hand, beside pela's own")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--precision", default="no", choices=("no", "fp16", "bf16"))
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda")
    parser.add_argument("--out", type=Path, help="JSON lines")
    parser.add_argument("--work", type=Path, help="models and data; beside --out if unset")
    parser.add_argument("--table", type=Path, help="print the table of a file and stop")
    parser.add_argument("--quick", action="store_true", help="a tiny random model, seconds")
    args = parser.parse_args(argv)
    if not (args.table or args.quick) and (args.model is None or args.out is None):
        parser.error("give --model and --out, or --table, or --quick")
    return args


def quick(args: argparse.Namespace, folder: Path) -> argparse.Namespace:
    """Everything at a tiny size, with a random model and digits for Fashion-MNIST."""
    args.model, args.fashion = str(tiny_backbone(folder / "model")), tiny(folder)
    args.out = folder / "quick.jsonl"
    args.samples, args.ratios, args.seeds, args.rates = "64", "1/2", "0", "1e-5"
    args.size, args.steps, args.batch, args.test_images = 28, 6, 8, 40
    return args


def cells(args: argparse.Namespace) -> list[Cell]:
    """All cells: the first seed of all numbers of samples and ratios, then the others at 1/2."""
    ratios, settings = args.ratios.split(","), [PELA, *args.rates.split(",")]
    seeds = [int(seed) for seed in args.seeds.split(",")]
    middle = "1/2" if "1/2" in ratios else ratios[0]
    return [
        Cell(samples, ratio, seed, setting)
        for seed in seeds
        for samples in map(int, args.samples.split(","))
        for ratio in (sorted(ratios, key=lambda r: r != middle) if seed == seeds[0] else [middle])
        for setting in settings
    ]


def run(args: argparse.Namespace) -> list[Row]:
    """The cells that are not done yet, one after the other; all rows.

    Raises:
        RequestError: ``--out`` holds results of other settings.
    """
    work = args.work or args.out.with_suffix(".work")
    work.mkdir(parents=True, exist_ok=True)
    stamp = {"steps": args.steps, "batch": args.batch, "size": args.size}
    stamp |= {"precision": args.precision, "subject": Path(args.model).name}
    rows = read(args.out) if args.out.exists() else []
    if any(row["settings"] != stamp for row in rows):
        raise RequestError(f"{args.out}: holds results of other settings; name another file")
    done = {_cell(row) for row in rows}
    left = [cell for cell in cells(args) if cell not in done]
    for i, cell in enumerate(left):
        began = time.perf_counter()
        row: Row = {"samples": cell.samples, "ratio": cell.ratio, "seed": cell.seed}
        row |= {"setting": cell.setting} | measured(cell, args, work)
        row |= {"wall_seconds": time.perf_counter() - began, "settings": stamp}
        row |= {"machine": machine(args.device)}
        rows.append(row)
        append(args.out, row)
        talk.print(
            f"{i + 1}/{len(left)} {cell.samples} samples, {cell.ratio}, seed {cell.seed}, "
            f"{cell.setting}: {row['figure']} {row['start']:.4g} to {row['end']:.4g}",
            soft_wrap=True,
        )
    return rows


def measured(cell: Cell, args: argparse.Namespace, work: Path) -> Row:
    """The figures of a cell, whose models stay in the work folder."""
    spec, start_spec = recipe(cell, args, work), recipe(replace(cell, setting=""), args, work)
    start = layout.folder(start_spec, "decompose")
    if not start.is_dir():
        pipeline.run(start_spec)
    begin_with(spec, start)
    pipeline.run(spec)
    healed = layout.folder(spec, "pretrain")
    metrics = document.read(healed).history[-1].metrics
    figures = [distance(path, spec) for path in (start, healed)]
    name = "kl" if "kl" in figures[0] else "relative_error"
    return {
        "figure": name,
        "start": figures[0][name],
        "end": figures[1][name],
        "best_step": metrics.get("best_step"),
        "rate": metrics.get("rate_search", {}).get("lr", cell.setting),
    }


def distance(artefact: Path, spec: Recipe) -> dict[str, float]:
    """How far a model is from the dense one on the test samples."""
    evaluated = steps_eval.run(
        Evaluation(
            NamedModel(str(artefact)),
            baseline=NamedModel(spec.model),
            data=spec.data,
            split="test",
            task=spec.task if spec.task == "language-modelling" else "unlabelled",
            task_args=spec.task_args,
            latency=False,
            device=spec.device,
        )
    )
    assert evaluated.agreement is not None
    return evaluated.agreement


def recipe(cell: Cell, args: argparse.Namespace, work: Path) -> Recipe:
    """The cell's recipe; without a setting only its start."""
    data: dict[str, Any] = {"batch_size": args.batch, "image_size": args.size}
    top: dict[str, Any] = {"model": args.model, "seed": cell.seed, "device": args.device}
    if args.texts is not None:
        top |= {"task": "language-modelling", "task_args": {"block": 512}}
        data["dataset"] = str(texts(args.texts, work, cell.samples))
    elif args.sentences:
        top["task"] = "sentence-embedding"
        data["dataset"] = str(sentences(work, cell.samples))
    else:
        data["dataset"] = str(
            folders(args.fashion, work, train=cell.samples, tests=args.test_images)
        )
        # Crops that still show what the image is of, as in recipes/vit_base.toml.
        data["augment"] = {"scale": [0.7, 1.0], "color_jitter": 0.0}
    top["output"] = str(work / cell.start / (cell.setting or "start"))
    decompose = {"ratio": cell.ratio, "scope": "layers", "calibrate": "train"}
    if not cell.setting:
        return Recipe.model_validate(top | {"data": data, "decompose": decompose})
    per_epoch = max(1, cell.samples // args.batch)
    healing: dict[str, Any] = {
        "steps": args.steps, "epochs": 1 + args.steps / per_epoch, "precision": args.precision,
        "save_every": 25, "keep": 1,
    }  # fmt: skip
    if cell.setting != PELA:
        healing |= {"lr": float(cell.setting), "min_lr": 0.0, "warmup_lr": 0.0}
        healing["warmup_epochs"] = args.steps / 10 / per_epoch
    return Recipe.model_validate(top | {"data": data, "decompose": decompose, "pretrain": healing})


def sentences(work: Path, samples: int) -> Path:
    """A folder with sentences of scikit-learn's documentation, one a line."""
    lines = scikit_sentences()
    order = np.random.default_rng(0).permutation(len(lines))
    held_out = VALIDATION_TEXTS + TEST_TEXTS
    return _text_folder(
        work / f"sentences-{samples}",
        test=[lines[i] for i in order[:TEST_TEXTS]],
        validation=[lines[i] for i in order[TEST_TEXTS:held_out]],
        train=[lines[i] for i in order[held_out:][:samples]],
    )


def texts(files: tuple[Path, Path], work: Path, samples: int) -> Path:
    """A folder with lines of the first file to train on, as many as fill some blocks of 512 tokens
    of four letters, and lines of the second to judge by."""
    fit, test = (file.read_text(encoding="utf-8").splitlines() for file in files)
    letters, count = samples * 512 * 4, 0
    while count < len(fit) and letters > 0:
        letters -= len(fit[count])
        count += 1
    return _text_folder(
        work / f"texts-{samples}",
        test=test[VALIDATION_TEXTS:][:TEST_TEXTS],
        validation=test[:VALIDATION_TEXTS],
        train=fit[:count],
    )


def _text_folder(folder: Path, **splits: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in splits.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _cell(row: Row) -> Cell:
    return Cell(row["samples"], row["ratio"], row["seed"], row["setting"])


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line per start, with what pela's settings and the best rate by hand made of it.

    The last column is the share of the gain by hand that pela's settings reach.
    """
    if not rows:
        return "no results yet"
    settings = rows[0]["settings"]
    lines = [
        f"{rows[0]['figure'].replace('_', ' ')} on the test samples, {settings['steps']} steps of "
        f"{settings['batch']} samples; means over seeds (their number).",
        "",
        "| samples | ratio | start | pela | rate, best step | by hand | rate | gain reached |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups = sorted({(row["samples"], row["ratio"]) for row in rows}, key=_order)
    return "\n".join([*lines, *(_line(key, rows) for key in groups)])


def _order(key: tuple[int, str]) -> tuple[int, Fraction]:
    return key[0], -Fraction(key[1])


def _line(key: tuple[int, str], rows: Sequence[Row]) -> str:
    some = [row for row in rows if (row["samples"], row["ratio"]) == key]
    own = [row for row in some if row["setting"] == PELA]
    rates = {row["setting"] for row in some} - {PELA}
    by_hand = {rate: _mean([r for r in some if r["setting"] == rate], "end") for rate in rates}
    start, end = _mean(some, "start"), _mean(own, "end")
    fields = [str(key[0]), key[1], f"{start:.4f} ({len(own)})", f"{end:.4f}"]
    fields.append("; ".join(f"{float(r['rate']):.0e}, {r['best_step']}" for r in own))
    if by_hand:
        best = min(by_hand, key=by_hand.__getitem__)
        gain = start - by_hand[best]
        share = f"{(start - end) / gain:.0%}" if gain > 0 else "no gain by hand"
        fields += [f"{by_hand[best]:.4f}", best, share]
    else:
        fields += ["", "", ""]
    return f"| {' | '.join(fields)} |"


def _mean(rows: Sequence[Row], key: str) -> float:
    return statistics.fmean(row[key] for row in rows) if rows else float("nan")


if __name__ == "__main__":
    try:
        main()
    except PelaError as error:
        sys.exit(f"healing: {error}")
