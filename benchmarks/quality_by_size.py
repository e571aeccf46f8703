"""The picture of the README: how good is what is left of a model, at which size, with no training?

    python benchmarks/quality_by_size.py

draws ``docs/figures/quality-by-size.svg`` from the rows that ``rank_policies.py`` recorded for
DINOv2 ViT-S/14 in ``benchmarks/results/``. Nothing is measured here.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import _rows

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "results" / "rank_policies-dinov2.jsonl"
FIGURE = ROOT / "docs" / "figures" / "quality-by-size.svg"

# Policy of rank_policies.py → its name in the picture.
SERIES = {
    "pela": "pela",
    "svd-llm": "input-whitened (SVD-LLM)",
    "balf": "whitened, global (BALF)",
    "asvd": "channel-scaled (ASVD)",
    "plain-uniform": "plain SVD",
}
# Share of the layers' parameters → mean accuracy over the seeds, in percent.
Points = Mapping[float, float]

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 206, 44, 56, 56
SMALLEST, LARGEST = 0.3, 1.0
LINE = 17  # pixels between the baselines of two labels
# The background is part of the picture, so that it stays readable on a page of the other colour.
STYLE = """
svg { font: 13px system-ui, sans-serif }
.ground { fill: #ffffff } text { fill: #1f2328 } .soft { fill: #59636e }
.grid { stroke: #d1d9e0 } .dense { stroke: #1f2328; stroke-dasharray: 5 4 }
.line { fill: none; stroke-width: 2 } .title { font-size: 15px; font-weight: 600 }
.s0 { --ink: #0969da } .s1 { --ink: #8250df } .s2 { --ink: #1a7f37 }
.s3 { --ink: #9a6700 } .s4 { --ink: #cf222e }
.line, .lead { stroke: var(--ink) } .dot, text.name { fill: var(--ink) }
.s0.line { stroke-width: 3 }
.s0.name { font-weight: 600 }
@media (prefers-color-scheme: dark) {
.ground { fill: #0d1117 } text { fill: #f0f6fc } .soft { fill: #9198a1 }
.grid { stroke: #3d444d } .dense { stroke: #f0f6fc }
.s0 { --ink: #58a6ff } .s1 { --ink: #bc8cff } .s2 { --ink: #3fb950 }
.s3 { --ink: #d29922 } .s4 { --ink: #ff7b72 }
}
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the picture, to the file that is named, if one is."""
    paths = sys.argv[1:] if argv is None else argv
    target = Path(paths[0]) if paths else FIGURE
    target.write_text(picture(read(ROWS)), encoding="utf-8")
    print(f"written to {target}")


def read(path: Path) -> list[dict[str, Any]]:
    """The recorded rows of layers that are all factors, as every policy has them."""
    rows = _rows.read(path)
    return [row for row in rows if row.get("form", "factors") == "factors"]


def curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, Points]:
    """Policy → its points; those of `SERIES` only."""
    cells: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["policy"] in SERIES:
            cells[row["policy"]][float(Fraction(row["ratio"]))].append(row["metric"])
    return {
        policy: {ratio: statistics.mean(values) for ratio, values in cells[policy].items()}
        for policy in SERIES
    }


def picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole SVG."""
    dense = rows[0]["dense"]
    series = curves(rows)
    starts = {policy: points[min(points)] for policy, points in series.items()}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" '
        'aria-label="Accuracy against size for pela, plain SVD and three other policies">',
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
        '<text class="title" x="20" y="26">What is left of DINOv2 ViT-S/14 without training</text>',
        '<text class="soft" x="20" y="45">accuracy of a linear probe on Fashion-MNIST, %</text>',
        *axes(),
        f'<path class="dense" d="M{LEFT} {_y(dense):.1f}H{WIDTH - RIGHT}"/>',
        f'<text x="{WIDTH - RIGHT}" y="{_y(dense) - 7:.1f}" text-anchor="end">'
        f"dense: {dense:.1f}</text>",
    ]
    heights = spread({policy: _y(value) for policy, value in starts.items()})
    for number, (policy, points) in enumerate(series.items()):
        parts += _curve(number, points)
        x, y = _x(min(points)), heights[policy]
        parts.append(
            f'<path class="s{number} lead" d="M{LEFT - 4} {y - 4:.1f}L{x - 6:.1f} '
            f'{_y(starts[policy]):.1f}"/>'
            f'<text class="s{number} name" x="{LEFT - 8}" y="{y:.1f}" text-anchor="end">'
            f"{SERIES[policy]}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def axes() -> list[str]:
    """The lines of equal accuracy and the sizes, with their figures."""
    parts = []
    for percent in range(0, 100, 20):
        y = _y(percent)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text class="soft" x="{WIDTH - RIGHT + 6}" y="{y + 4:.1f}" font-size="11">'
            f"{percent}</text>"
        )
    base = HEIGHT - BOTTOM + 20
    for ratio, text in ((1 / 3, "1/3"), (0.5, "1/2"), (2 / 3, "2/3"), (0.8, "0.8"), (1.0, "1")):
        parts.append(
            f'<text class="soft" x="{_x(ratio):.1f}" y="{base}" text-anchor="middle">{text}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="soft" x="{middle:.0f}" y="{base + 22}" text-anchor="middle">'
        "parameters of the factorised layers, after / before</text>"
    )
    return parts


def spread(heights: Mapping[str, float]) -> dict[str, float]:
    """Baselines of labels beside their points, moved down where two would overlap."""
    result: dict[str, float] = {}
    lowest = 0.0
    for name, y in sorted(heights.items(), key=lambda item: item[1]):
        lowest = result[name] = max(y + 4, lowest + LINE)
    return result


def _curve(number: int, points: Points) -> list[str]:
    at = [(_x(ratio), _y(value)) for ratio, value in sorted(points.items())]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    dots = "".join(
        f'<circle class="s{number} dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in at
    )
    return [f'<path class="s{number} line" d="M{path}"/>', dots]


def _x(ratio: float) -> float:
    share = (ratio - SMALLEST) / (LARGEST - SMALLEST)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(percent: float) -> float:
    return HEIGHT - BOTTOM - percent / 90 * (HEIGHT - TOP - BOTTOM)


if __name__ == "__main__":
    main()
