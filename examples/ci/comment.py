"""The figures of `pela eval --json` as a comment in Markdown.

    python comment.py EVAL.json LAYERS.md GATE > COMMENT.md

LAYERS.md is a table of `pela report --format markdown`; GATE is the exit code of `pela eval`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PASSED, TOO_MUCH = 0, 3
HEADS = {
    PASSED: "### The compressed model is good enough",
    TOO_MUCH: "### The compressed model has lost too much",
}


def main() -> None:
    figures, layers, gate = sys.argv[1:]
    (result,) = json.loads(Path(figures).read_text(encoding="utf-8"))
    print(comment(result, Path(layers).read_text(encoding="utf-8"), int(gate)))


def comment(result: dict[str, Any], layers: str, gate: int) -> str:
    """The whole comment.

    Args:
        result: of one model, with its baseline.
        layers: a table.
        gate: exit code of the evaluation.
    """
    table = ["| | before | after | |", "|---|---:|---:|---|", *rows(result)]
    details = ["<details><summary>Layers</summary>", "", layers.strip(), "", "</details>"]
    return "\n".join([HEADS[gate], "", *table, "", *details])


def rows(result: dict[str, Any]) -> Iterator[str]:
    """A row for each figure that both models have."""
    before = result["baseline"]
    for name, key in (("parameters", "params"), ("FLOPs", "flops")):
        if before.get(key) and result.get(key):
            share = f"{100 * result[key] / before[key]:.1f} %"
            yield f"| {name} | {before[key]:,} | {result[key]:,} | {share} |"
    for name, value in result["metrics"].items():
        change = value - before["metrics"][name]
        yield f"| {name} | {before['metrics'][name]:.4g} | {value:.4g} | {change:+.4g} |"
    if result.get("latency_ms") and before.get("latency_ms"):
        times = before["latency_ms"], result["latency_ms"]
        share = f"{100 * times[1] / times[0]:.0f} %"
        yield f"| latency, ms per batch | {times[0]:.4g} | {times[1]:.4g} | {share} |"


if __name__ == "__main__":
    main()
