"""The course of training as curves: read from metrics.jsonl, of a finished artefact or of a run
that is still going on, and drawn as one line of a terminal.

Figures are named as trackers name them: ``loss``, ``losses/feature``, ``lr``, ``samples_per_s``,
``metrics/accuracy``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pelacli.errors import RequestError
from pelacli.recipe import layout
from pelacli.report.tables import Row
from pelacli.system import own_files

FILE = "metrics.jsonl"
_SINGLE = ("loss", "lr", "samples_per_s")  # keys of a line that hold one figure
_GROUPS = ("losses", "metrics")  # … and those that hold several by name
_ORDER = ("loss", "losses", "metrics", "lr", "samples_per_s")
_SMALLER_IS_BETTER = (
    "loss",
    "losses/",
    "metrics/loss",
    "metrics/relative_error",
    "metrics/kl",
    "metrics/perplexity",
)
_NEITHER_IS_BETTER = ("lr", "samples_per_s")
_BARS = "▁▂▃▄▅▆▇█"
_NUMBERS_WIDTH = 56  # columns of the terminal beside the curve

Point = tuple[int, float]  # (step, value)


@dataclass
class Course:
    """The course of one training.

    Attributes:
        step, epoch: of the last line.
        going_on: whether its artefact is still to come.
        series: figure → its points, in order of steps.
    """

    step: int
    epoch: float
    going_on: bool
    series: dict[str, list[Point]] = field(default_factory=dict)


def metrics_files(ref: str) -> dict[str, Path]:
    """Label → metrics file.

    Args:
        ref: an artefact, a run directory with all its steps, the working directory of a training
            that is going on (``….training``), or a metrics file itself.

    Returns:
        in order of path and step; empty where there is none.
    """
    path = Path(ref)
    if path.is_file():
        return {ref: path} if path.suffix == ".jsonl" else {}
    roots = [path]
    if path.name:  # "." has none
        roots.append(layout.workplace(path))  # of an artefact that is still to come
    folders = {
        file.parent
        for root in roots
        for pattern in ("", "*/", "*/*/")
        for file in root.glob(pattern + FILE)
        if not file.parent.name.startswith(".")
    }
    steps = list(layout.FOLDERS.values())

    def path_and_step(folder: Path) -> tuple[str, int, str]:
        step = folder.name.removesuffix(layout.OF_WORKPLACE)
        return str(folder.parent), steps.index(step) if step in steps else -1, folder.name

    return {str(folder): folder / FILE for folder in sorted(folders, key=path_and_step)}


# What a line that is none raises; of an infinite step and of very deep JSON the last two.
_NO_LINE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def read(file: Path) -> Course:
    """Read a metrics file. A last line that is being written just now is left out.

    Raises:
        RequestError: it is not a metrics file, or has no line yet.
    """
    try:
        own_files.check_ends(file)
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file}: can't be read ({error})") from None
    course = Course(0, 0.0, file.parent.name.endswith(layout.OF_WORKPLACE))
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            course.step, course.epoch = int(line["step"]), float(line["epoch"])
            for name, value in _figures(line):
                course.series.setdefault(name, []).append((course.step, value))
        except _NO_LINE:
            if number == len(lines) and not text.endswith("\n"):
                break
            raise RequestError(f"{file}:{number}: not a line of metrics") from None
    if not course.series:
        raise RequestError(
            f"{file}: has no figures yet; training writes them every log_every steps"
        )
    names = sorted(course.series, key=lambda name: _ORDER.index(name.partition("/")[0]))
    course.series = {name: course.series[name] for name in names}
    return course


def _figures(line: dict[str, Any]) -> Iterable[tuple[str, float]]:
    """The finite figures of a line."""
    figures = {name: line[name] for name in _SINGLE if name in line}
    for group in _GROUPS:
        figures |= {f"{group}/{name}": value for name, value in line.get(group, {}).items()}
    return [
        (name, float(value))
        for name, value in figures.items()
        if value is not None and math.isfinite(value)
    ]


def best(name: str, points: Sequence[Point]) -> Point | None:
    """The best point of a figure; None for figures that are neither good nor bad."""
    if name in _NEITHER_IS_BETTER:
        return None
    sign = -1 if name.startswith(_SMALLER_IS_BETTER) else 1
    return max(points, key=lambda point: sign * point[1])


def sparkline(points: Sequence[Point], width: int) -> str:
    """The points as bars in one line, at most ``width`` characters, evenly spaced in steps.

    A bar is the mean of the points in its stretch of steps; a stretch without points takes the bar
    before it. The lowest bar is the smallest mean, the full one the largest.
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
    """One line above the curves of a course."""
    state = ", going on" if course.going_on else ""
    return f"{label}: step {course.step:,}, epoch {course.epoch:g}{state}"


def human_rows(course: Course, columns: int = 80) -> list[Row]:
    """A row per figure, with its curve, for a terminal of so many columns."""
    width = max(8, min(64, columns - _NUMBERS_WIDTH))
    rows = []
    for name, points in course.series.items():
        best_point = best(name, points)
        rows.append(
            {
                "figure": name,
                "first": f"{points[0][1]:.4g}",
                "last": f"{points[-1][1]:.4g}",
                "best": None if best_point is None else f"{best_point[1]:.4g}",
                "curve": sparkline(points, width),
            }
        )
    return rows


def exact_rows(courses: Mapping[str, Course]) -> list[Row]:
    """A row per point of all courses, for CSV."""
    return [
        {"run": label, "figure": name, "step": step, "value": value}
        for label, course in courses.items()
        for name, points in course.series.items()
        for step, value in points
    ]


def documents(courses: Mapping[str, Course]) -> list[Row]:
    """The document of ``pela report --curves --json``: one for each course."""
    return [
        {
            "run": label,
            "step": course.step,
            "epoch": course.epoch,
            "going_on": course.going_on,
            "series": {name: [list(p) for p in points] for name, points in course.series.items()},
        }
        for label, course in courses.items()
    ]
