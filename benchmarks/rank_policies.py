"""Policies × budgets, with no training: how good is what is left of a real pretrained model?

    python benchmarks/rank_policies.py --model DINOV2 --size 98 --out dinov2.jsonl
    python benchmarks/rank_policies.py --model MINILM --samples 256 --out minilm.jsonl
    python benchmarks/rank_policies.py --model SMOLLM2 --texts calib.txt eval.txt \\
        --samples 131072 --ratios 0.9,0.8,0.7,0.6 --out smollm2.jsonl
    python benchmarks/rank_policies.py --model NAME --data DATASET --out name.jsonl
    python benchmarks/rank_policies.py --table dinov2.jsonl
    python benchmarks/rank_policies.py --quick

DINOV2 is a directory with a headless image model: without ``--data`` it is judged by a linear
probe on Fashion-MNIST (the Debian package dataset-fashion-mnist). MINILM is a directory with a
sentence encoder, judged by the rank correlation of sentence similarities with the dense model's.
SMOLLM2 is a directory with a causal language model, judged by its perplexity on the test's blocks;
its ``--samples`` are tokens. Any other timm or transformers name works with a dataset of its own.

Results are appended to ``--out`` as they come; started again, the run goes on where it stopped.
The seeds draw the calibration samples. Budgets count the factorised layers' parameters.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch
from _fashion import FASHION
from _policies import ALL, OF_ANY_FORM, OF_TEXTS, POLICIES, Case
from _rows import Row, append, read
from _subjects import Subject, Texts, dataset, subject_of
from rich.console import Console

from pelacli.errors import RequestError
from pelacli.factorize.batches import hold_back, with_held_back
from pelacli.lowrank import find
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.replace import Parts, tensors
from pelacli.models import opening
from pelacli.ranks.forms import CHOICES, Choice

talk = Console(stderr=True, highlight=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for and print the table."""
    args = arguments(argv)
    if args.table is not None:
        print(table(read(args.table)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.quick:
            args.out = Path(folder) / "quick.jsonl"
            subject: Subject | Texts = quick(Path(folder))
        else:
            subject = open_subject(args)
        rows = run(subject, args)
    print(table(rows))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", help="timm or transformers name, or a directory")
    parser.add_argument(
        "--texts",
        nargs=2,
        type=Path,
        metavar=("FIT", "TEST"),
        help="of a language model, one a line",
    )
    parser.add_argument("--block", type=int, default=512, help="tokens of a block of texts")
    parser.add_argument("--test-tokens", type=int, default=30000)
    parser.add_argument("--data", help="dataset, as for pela eval")
    parser.add_argument("--fashion", type=Path, default=FASHION, help="folder of the idx files")
    parser.add_argument("--size", type=int, help="pixels a side")
    parser.add_argument("--policies", help=f"some of {', '.join(ALL)}; by default all that fit")
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=CHOICES,
        default=["factors", "auto"],
        help="of pela's own",
    )
    parser.add_argument("--ratios", default="0.8,2/3,1/2,1/3")
    parser.add_argument("--seeds", default="0,1,2", help="of the calibration sample")
    parser.add_argument("--samples", type=int, default=512, help="for calibration")
    parser.add_argument("--test-images", type=int, default=3000)
    parser.add_argument("--dev", action="store_true", help="test on held-out training images")
    parser.add_argument("--out", type=Path, help="JSON lines")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="of dense features")
    parser.add_argument("--table", type=Path, help="print the table of a file and stop")
    parser.add_argument("--quick", action="store_true", help="a tiny random model, seconds")
    args = parser.parse_args(argv)
    if args.quick:
        args.samples, args.test_images, args.seeds = 16, 40, "0"
    elif args.table is None and (args.model is None or args.out is None):
        parser.error("give --model and --out, or --table, or --quick")
    for name in (args.policies or "pela").split(","):
        if name not in ALL:
            parser.error(f"--policies {name}: there is {', '.join(ALL)}")
    return args


def open_subject(args: argparse.Namespace) -> Subject | Texts:
    """The model and its test."""
    opened = opening.open(args.model)
    if args.texts is not None and args.data is None:
        fit, test = args.texts
        return Texts.of(opened, fit, test, args.block, args.test_tokens)
    return subject_of(
        opened,
        data=args.data,
        fashion=args.fashion,
        tests=args.test_images,
        size=args.size,
        cache=args.cache,
        dev=args.dev,
    )


def quick(folder: Path) -> Subject:
    """A tiny random ViT on the digits: only to see that everything runs."""
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    opened = opening.open(
        "vit_tiny_patch16_224", weights="random", model_args=kwargs, num_classes=10
    )
    return dataset(opened, "digits", tests=40, size=32)


def run(subject: Subject | Texts, args: argparse.Namespace) -> list[Row]:
    """All cells, those of one calibration sample after those of another; the rows."""
    opened = subject.opened
    layers = [la for la in find.find_layers(opened.module, head=opened.head) if not la.reason]
    dense = subject.dense_metric
    rows = read(args.out) if args.out.exists() else []
    done = {(r["policy"], r["ratio"], r["seed"], r.get("form", "factors")) for r in rows}
    fitting = POLICIES if subject.head is None else ALL
    names = args.policies.split(",") if args.policies else list(fitting)
    if subject.head is None and (wrong := OF_TEXTS.keys() & set(names)):
        raise RequestError(f"--policies {min(wrong)}: is of language models; leave it out")
    ratios = args.ratios.split(",")
    cells: list[tuple[int, int | None, str, str, Choice]] = []
    for seed in map(int, args.seeds.split(",")):
        for name in names:
            # What looks at no samples is the same for all of them.
            number = seed if ALL[name][1] else None
            forms: list[Choice] = args.forms if name in OF_ANY_FORM else ["factors"]
            cells += [(seed, number, name, ratio, form) for ratio in ratios for form in forms]
    cells = [c for c in cells if (c[2], c[3], c[1], c[4]) not in done]
    cells = [c for i, c in enumerate(cells) if c[1:] not in [d[1:] for d in cells[:i]]]
    case: Case | None = None
    begin = time.perf_counter()
    for i, (seed, number, name, ratio, form) in enumerate(cells):
        if case is None or case.seed != seed:
            samples = hold_back(subject.calibration(with_held_back(args.samples), seed))
            case = Case(
                opened.module, layers, samples.fitted, samples.held_back, seed, subject.head
            )
        case.form = form
        row = cell(subject, case, layers, name, ratio)
        row |= {
            "form": form,
            "seed": number,
            "model": opened.ref if not Path(opened.ref).exists() else Path(opened.ref).name,
            "dense": dense,
            "drop": dense - row["metric"],
            "of": subject.metric,
            "samples": args.samples if number is not None else 0,
            "tests": subject.tests,
            "dev": args.dev,
        }
        rows.append(row)
        append(args.out, row)
        left = (time.perf_counter() - begin) / (i + 1) * (len(cells) - i - 1)
        talk.print(
            f"{i + 1}/{len(cells)} seed {number} {name} {form} {ratio}: {row['metric']:.2f} "
            f"({-row['drop']:+.2f}), error {row['error']:.4f}, {row['seconds']:.1f} s; "
            f"{left / 60:.0f} min left",
            soft_wrap=True,
        )
    return rows


def cell(
    subject: Subject | Texts, case: Case, layers: Sequence[Layer], name: str, ratio: str
) -> Row:
    """One policy at one budget. ``seconds`` is what it took but for what it shares with others."""
    exact = Fraction(ratio)
    start = time.perf_counter()
    factors = ALL[name][0](case, exact)
    seconds = time.perf_counter() - start
    used = sum(_weights(factors[la.name]) if la.name in factors else la.params for la in layers)
    total = sum(la.params for la in layers)
    if used > int(exact * total):
        raise RequestError(f"{name}: takes {used} parameters of {int(exact * total)}")
    figures = subject.measure(factors)
    return {
        "policy": name, "ratio": ratio, "achieved": used / total, "seconds": seconds, **figures,
    }  # fmt: skip


def _weights(parts: Parts) -> int:
    named = tensors(parts)
    return named["down.weight"].numel() + named["up.weight"].numel()


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line per policy and form, a column per budget: drop ± spread / outputs' error."""
    if not rows:
        return "no results yet"
    first = rows[0]
    ratios = sorted({row["ratio"] for row in rows}, key=Fraction, reverse=True)
    lines = [
        f"{first['model']}: {first['of']}, dense {first['dense']:.2f}, {first['tests']} tests, "
        f"{max(row['samples'] for row in rows)} calibration samples. Points lost "
        "(mean ± standard deviation over seeds) / relative error of the outputs / seconds.",
        "",
        f"| policy | form | {' | '.join(ratios)} |",
        "|---" * (len(ratios) + 2) + "|",
    ]
    for name, form in ((name, form) for name in ALL for form in CHOICES):
        mine = [r for r in rows if (r["policy"], r.get("form", "factors")) == (name, form)]
        found = []
        for ratio in ratios:
            some = [r for r in mine if r["ratio"] == ratio]
            found.append(_figures(some) if some else "")
        if any(found):
            lines.append(f"| {name} | {form} | {' | '.join(found)} |")
    return "\n".join(lines)


def _figures(rows: Sequence[Row]) -> str:
    def mean(key: str) -> float:
        return statistics.fmean(row[key] for row in rows)

    drops = [row["drop"] for row in rows]
    spread = f" ± {statistics.stdev(drops):.2f}" if len(drops) > 1 else ""
    return f"{mean('drop'):.2f}{spread} / {mean('error'):.3f} / {mean('seconds'):.0f}"


if __name__ == "__main__":
    torch.manual_seed(0)
    try:
        main()
    except RequestError as error:
        sys.exit(f"rank_policies: {error}")
