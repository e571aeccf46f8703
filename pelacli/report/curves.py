"""The course of training as curves: read from metrics.jsonl, of a finished artefact or of a run
that is still going on, and drawn in a line of the terminal. No torch.

Figures are named as trackers have them: ``loss``, ``losses/feature``, ``lr``, ``samples_per_s``,
``metrics/accuracy``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pelacli.errors import RequestError
from pelacli.recipe import layout
from pelacli.report.tables import Row

FILE = "metrics.jsonl"
_BARS = "▁▂▃▄▅▆▇█"
_GROUPS = ("losses", "metrics")
_PLAIN = ("loss", "lr", "samples_per_s")
_SMALLER = ("loss", "losses/", "metrics/loss", "metrics/relative_error")  # better when smaller
_NEITHER = ("lr", "samples_per_s")
_BESIDE = 56  # columns of the terminal that the numbers take

Point = tuple[int, float]  # (step, value)


@dataclass
class Course:
    """One run of training.

    Attributes:
        step, epoch: of the last line.
        going_on: whether its artefact is still to come.
        series: figure → its points, in order of steps.
    """

    step: int
    epoch: float
    going_on: bool
    series: dict[str, list[Point]] = field(default_factory=dict)


def find(ref: str) -> dict[str, Path]:
    """Label → metrics file: of an artefact, a run directory with all its steps, a folder of a run
    that is going on (``….training``), or the file itself. Empty where there is none."""
    path = Path(ref)
    if path.is_file():
        return {ref: path} if path.suffix == ".jsonl" else {}
    roots = [path]
    if path.name:  # "." has none
        roots.append(layout.workplace(path))  # of an artefact that is still to come
    found = {
        file.parent
        for root in roots
        for pattern in ("", "*/", "*/*/")
        for file in root.glob(pattern + FILE)
        if not file.parent.name.startswith(".")
    }
    order = list(layout.FOLDERS.values())

    def place(folder: Path) -> tuple[str, int, str]:
        step = folder.name.removesuffix(".training")
        return str(folder.parent), order.index(step) if step in order else -1, folder.name

    return {str(folder): folder / FILE for folder in sorted(found, key=place)}


def read(file: Path) -> Course:
    """Read a metrics file. A last line that is being written just now is left out.

    Raises:
        RequestError: it is not a metrics file, or has no line yet.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file}: can't be read ({error})") from None
    course = Course(0, 0.0, file.parent.name.endswith(".training"))
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            course.step, course.epoch = int(line["step"]), float(line["epoch"])
            for name, value in _figures(line):
                course.series.setdefault(name, []).append((course.step, value))
        except (ValueError, KeyError, TypeError, AttributeError):
            if number == len(lines) and not text.endswith("\n"):
                break
            raise RequestError(f"{file}:{number}: not a line of metrics") from None
    order = ("loss", "losses", "metrics", *_NEITHER)
    course.series = dict(
        sorted(course.series.items(), key=lambda item: order.index(item[0].partition("/")[0]))
    )
    if not course.series:
        raise RequestError(
            f"{file}: has no figures yet; training writes them every log_every steps"
        )
    return course


def _figures(line: dict[str, Any]) -> Iterable[tuple[str, float]]:
    """The figures of a line, those left out that are no finite numbers."""
    flat = {name: line[name] for name in _PLAIN if name in line}
    for group in _GROUPS:
        flat |= {f"{group}/{name}": value for name, value in line.get(group, {}).items()}
    return [(n, float(v)) for n, v in flat.items() if v is not None and math.isfinite(v)]


def best(name: str, points: Sequence[Point]) -> Point | None:
    """The best point of a figure; None for figures that are neither good nor bad."""
    if name in _NEITHER:
        return None
    sign = -1 if name.startswith(_SMALLER) else 1
    return max(points, key=lambda point: sign * point[1])


def sparkline(points: Sequence[Point], width: int) -> str:
    """The points as bars in one line, at most ``width`` characters, evenly spaced in steps.

    A bar is the mean of the points of its stretch; stretches without points take the last value.
    The lowest bar is the smallest mean, the full one the largest.
    """
    if not points:
        return ""
    first, last = points[0][0], points[-1][0]
    width = max(1, min(width, len(points)))
    stretches: list[list[float]] = [[] for _ in range(width)]
    for step, value in points:
        share = (step - first) / max(1, last - first)
        stretches[min(width - 1, int(share * width))].append(value)
    means: list[float] = []
    for stretch in stretches:
        means.append(sum(stretch) / len(stretch) if stretch else means[-1])
    low, high = min(means), max(means)
    if high == low:
        return _BARS[3] * width
    top = len(_BARS) - 1
    return "".join(_BARS[round((value - low) / (high - low) * top)] for value in means)


def title(label: str, course: Course) -> str:
    """One line above a run's curves."""
    state = ", going on" if course.going_on else ""
    return f"{label}: step {course.step:,}, epoch {course.epoch:g}{state}"


def rows(course: Course, columns: int = 80) -> list[Row]:
    """A row per figure, with its curve, for a terminal of so many columns."""
    width = max(8, min(64, columns - _BESIDE))
    found = []
    for name, points in course.series.items():
        top = best(name, points)
        found.append(
            {
                "figure": name,
                "first": f"{points[0][1]:.4g}",
                "last": f"{points[-1][1]:.4g}",
                "best": None if top is None else f"{top[1]:.4g}",
                "curve": sparkline(points, width),
            }
        )
    return found


def point_rows(found: dict[str, Course]) -> list[Row]:
    """A row per point of all runs, exact, for CSV."""
    return [
        {"run": label, "figure": name, "step": step, "value": value}
        for label, course in found.items()
        for name, points in course.series.items()
        for step, value in points
    ]


def to_json(found: dict[str, Course]) -> list[Row]:
    """A document per run."""
    return [
        {
            "run": label,
            "step": course.step,
            "epoch": course.epoch,
            "going_on": course.going_on,
            "series": {name: [list(p) for p in points] for name, points in course.series.items()},
        }
        for label, course in found.items()
    ]
