"""Which architectures pela works on: timm's by every name, and transformers' in use, made tiny.

    python benchmarks/coverage.py --out benchmarks/results/coverage.jsonl \\
        --markdown docs/coverage.md                      # all, and the table in the docs
    python benchmarks/coverage.py --only 'swin|beit'     # names to search for
    python benchmarks/coverage.py --list

Each model gets random weights and noise for samples, and is put through what pela does:

1. Every layer factorised at full rank: the outputs are the dense model's.
2. Half of the layers' parameters (the paper's uniform ranks): parameters and FLOPs are those that
   the report names, counted anew by torch on the low-rank model.
3. Saved as an artefact and loaded: every output tensor is the same, bit by bit.
4. One step of feature distillation under the dense model lowers the loss on that batch.

What fails stands in the table as one line and never ends the run. A run that was interrupted goes
on where it stopped if it is given the same ``--out``.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import _hf_cases
import _rows
import _timm_cases
import transformers
from _trial import Case, run

Row = dict[str, Any]
ENOUGH = 0.95  # share that must work
COMMAND = (
    "python benchmarks/coverage.py --out benchmarks/results/coverage.jsonl "
    "--markdown docs/coverage.md"
)
MARKS = {"works": "works", "refused": "**refused**", "broken": "**fails**"}


def main(argv: Sequence[str] | None = None) -> None:
    """Try what is asked for, tell each as it is done, and write the table."""
    args = arguments(argv)
    wanted = [case for case in cases() if re.search(args.only, case.name)]
    if args.list:
        print("\n".join(f"{case.library:12} {case.name}" for case in wanted))
        return
    rows = try_all(wanted, args.out)
    print(summary(rows))
    if args.markdown is not None:
        args.markdown.write_text(markdown(rows, _timm_cases.left_out()), encoding="utf-8")
    if share(rows) < ENOUGH:
        sys.exit(1)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="regular expression, searched in the names")
    parser.add_argument("--out", type=Path, help="JSON lines, one an architecture")
    parser.add_argument("--markdown", type=Path, help="where the table goes")
    parser.add_argument("--list", action="store_true", help="only name the architectures")
    return parser.parse_args(argv)


def cases() -> list[Case]:
    """All architectures: timm's, then transformers'."""
    return [*_timm_cases.cases(), *_hf_cases.cases()]


def try_all(wanted: Iterable[Case], out: Path | None) -> list[Row]:
    """A row for each, those that ``out`` holds already taken from there."""
    kept: list[Row] = []
    if out is not None and out.is_file():
        kept = _rows.read(out)
    known = {(row["library"], row["name"]): row for row in kept}
    rows = []
    for case in wanted:
        row = known.get((case.library, case.name))
        if row is None:
            row = quietly(case)
            if out is not None:
                _rows.append(out, row)
        print(line(row), flush=True)
        rows.append(row)
    return rows


def quietly(case: Case) -> Row:
    """Try one; what its library says on the way is not kept."""
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        row = run(case)
    gc.collect()
    return row


def share(rows: Sequence[Row]) -> float:
    """Of those that were tried, how many work."""
    tried = [row for row in rows if row["status"] != "left out"]
    works = [row for row in tried if row["status"] == "works"]
    return len(works) / max(1, len(tried))


def line(row: Row) -> str:
    layers = f"{row['factorised']}/{row['layers']}"
    said = f"{row['status']:9}{row['name']:44}{layers:>8}{row['seconds']:7.1f} s"
    return f"{said}  {why(row)}".rstrip()


def why(row: Row) -> str:
    """What is to be said of a row: what went wrong and where, or what is odd."""
    if row["status"] in ("refused", "broken"):
        return f"{row['stage']}: {row['why']}"
    return "; ".join([*([row["why"]] if row["why"] else []), *row["notes"]])


def summary(rows: Sequence[Row]) -> str:
    parts = []
    for library in ("timm", "transformers"):
        own = [r for r in rows if r["library"] == library and r["status"] != "left out"]
        if own:
            works = sum(row["status"] == "works" for row in own)
            parts.append(f"{library}: {works} of {len(own)} ({works / len(own):.1%})")
    return "; ".join(parts) or "nothing was tried"


def markdown(rows: Sequence[Row], left_out: dict[str, str]) -> str:
    """docs/coverage.md."""
    failing = [row for row in rows if row["status"] in ("refused", "broken")]
    text = [
        "# Supported architectures",
        "",
        "Look up your model here. If it is in a table, pela can make it smaller. If it "
        "is not, try it: `pela report MODEL --by layer`",
        "shows which layers can be factorised, and which stay as they are and why.",
        "",
        "Every line was run: a tiny copy of the architecture with random weights was "
        "factorised at full rank (and gave the same",
        "outputs as before), factorised to half of its layers' parameters (and had as "
        "many parameters and FLOPs as pela said), saved and",
        "loaded (and was the same to the last bit), and healed for one step (and the "
        "loss fell). That says that pela handles the",
        "architecture, not how good the smaller model is.",
        "",
        f"`{COMMAND}` runs it and writes this page.",
        "",
        f"**Works: {summary(rows)}.**",
        "",
        "## What does not work yet",
        "",
        *(
            [f"- `{row['name']}` ({row['library']}): {why(row)}" for row in failing]
            or ["Of what was tried, everything works."]
        ),
    ]
    timms = [r for r in rows if r["library"] == "timm" and r["status"] != "left out"]
    if timms:
        text += ["", "## timm", "", *by_module(timms)]
    own = [r for r in rows if r["library"] == "transformers" and r["status"] != "left out"]
    if own:
        text += [
            "",
            "## transformers",
            "",
            "The numbers are linear layers: how many are factorised, of how many there are.",
            "",
            "| architecture | type | layers | works | stay dense | seconds | note |",
            "|---|---|---|---|---|---|---|",
            *(cells(row) for row in own),
        ]
    text += ["", "## Not tried", "", *outside(rows, left_out)]
    return "\n".join(text) + "\n"


def by_module(rows: Sequence[Row]) -> list[str]:
    """A line for each of timm's modules, with all its names; the JSON has a line for each."""
    lines = ["| module | works | stay dense | notes | architectures |", "|---|---|---|---|---|"]
    for module in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == module]
        works = [row for row in own if row["status"] == "works"]
        dense = ", ".join(sorted({reason for row in own for reason in row["dense"]}))
        notes = "; ".join(dict.fromkeys(note for row in own for note in row["notes"]))
        names = ", ".join(f"`{row['name']}`" for row in own)
        count = f"{len(works)} of {len(own)}"
        lines.append("| " + " | ".join([f"`{module}`", count, dense, notes, names]) + " |")
    return lines


def cells(row: Row) -> str:
    dense = ", ".join(f"{count} {reason}" for reason, count in row["dense"].items())
    layers = f"{row['factorised']}/{row['layers']}"
    said = "; ".join(row["notes"]) if row["status"] == "works" else why(row)
    mark = MARKS[row["status"]]
    found = (f"`{row['name']}`", row["group"], layers, mark, dense, f"{row['seconds']:.1f}", said)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in found) + " |"


def outside(rows: Sequence[Row], left_out: dict[str, str]) -> list[str]:
    """What is no Transformer to pela, or not tiny, by reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(f"timm: {reason}", []).append(name)
    for row in rows:
        if row["status"] == "left out":
            by_reason.setdefault(f"{row['library']}: {row['why']}", []).append(row["name"])
    return [
        f"- {reason}: {', '.join(f'`{name}`' for name in sorted(names))}"
        for reason, names in sorted(by_reason.items())
    ]


if __name__ == "__main__":
    main()
