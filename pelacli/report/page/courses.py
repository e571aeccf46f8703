"""Curves of training: a small plot for each figure, from before the first step on."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from pelacli.report import curves
from pelacli.report.curves import Course, Point
from pelacli.report.page import scales
from pelacli.report.page.depth import SIZE
from pelacli.report.page.figure import Gallery
from pelacli.report.page.svg import Plot

_MOST = 300  # points of a line; of more, means


def gallery(course: Course) -> Gallery:
    """All figures of a training."""
    going_on = " (still going on)" if course.going_on else ""
    return Gallery(
        title="Training",
        caption=f"{course.step:,} steps, {course.epoch:g} epochs{going_on}. The dashed line is the "
        "model before the first step, where it was measured; the dot is the best.",
        plots=[(_shown(name), _draw(name, points)) for name, points in course.series.items()],
    )


def _draw(name: str, points: Sequence[Point]) -> Markup:
    best = curves.best(name, points)
    detail = f"from {points[0][1]:.4g} at step {points[0][0]} to {points[-1][1]:.4g} at the end"
    plot = Plot(SIZE, _shown(name), detail, "step", "")
    left, top, right, bottom = plot.frame
    steps = [step for step, _ in points]
    plot.x = scales.Scale(0, max(1, *steps), left, right)
    plot.y = scales.around((value for _, value in points), bottom, top)
    plot.axes()
    if points[0][0] == 0:
        plot.rule(points[0][1], "start")
    line = _thinned(points)
    plot.line([(float(step), value) for step, value in line], "s0")
    if len(line) <= 30:
        for step, value in line:
            plot.dot(step, value, "dot s0", f"step {step}: {value:.4g}", 2.5)
    if best is not None and name.startswith("metrics/"):
        plot.dot(*best, "dot cut", f"best: {best[1]:.4g} at step {best[0]}", 4)
    return plot.markup()


def _shown(name: str) -> str:
    return name.replace("/", ": ").replace("_", " ")


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most `_MOST` points: each the mean of as many."""
    size = -(-len(points) // _MOST)
    parts = [points[n : n + size] for n in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]
