"""Quality against size: each model a point, the best of each size joined by a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from pelacli.report import quality
from pelacli.report.page import marks, scales
from pelacli.report.page.figure import Figure
from pelacli.report.page.svg import Plot
from pelacli.report.quality import Yardstick
from pelacli.report.subject import MEGA, Subject
from pelacli.report.summary import Compared, yardsticks
from pelacli.report.tables import human

_SIZES = ((520, 340), (340, 300))  # on a screen, and on a phone


@dataclass(frozen=True)
class Point:
    """One model.

    Attributes:
        size: in megabytes, or in millions of parameters.
        value: how good it is.
        name: as the list below the plot has it; None of a trial, which has no row.
        style: class of its mark.
        label: what stands beside it; None: nothing.
    """

    size: float
    value: float
    name: str
    style: str
    label: str | None = None


@dataclass(frozen=True)
class Chart:
    """One plot: all models that have the same figure."""

    yard: Yardstick
    unit: str
    points: list[Point] = field(default_factory=list)


def figures(subjects: Sequence[Subject], rows: Sequence[Compared]) -> list[Figure]:
    """A plot for each figure that two models or more have."""
    charts = [_chart(yard, subjects, rows) for yard in yardsticks(rows)]
    charts += _of_trials(subjects, {chart.yard for chart in charts})
    return [_figure(chart) for chart in charts if len({p.size for p in chart.points}) > 1]


def front(points: Sequence[Point], larger_is_better: bool) -> list[Point]:
    """The models that none of the others betters in both, by size."""
    sign = -1 if larger_is_better else 1
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.size, sign * p.value)):
        if not best or sign * point.value < sign * best[-1].value:
            best.append(point)
    return best


def _chart(yard: Yardstick, subjects: Sequence[Subject], rows: Sequence[Compared]) -> Chart:
    in_bytes = all(row.bytes is not None for row in rows)
    chart = Chart(yard, "MB" if in_bytes else "million parameters")
    for row in rows:
        if yard in row.figures:
            size = row.bytes if in_bytes and row.bytes is not None else row.params
            mark = "dense" if row.number is None else str(row.number)
            style = "dot dense-mark" if row.number is None or row.dense is None else "dot s0"
            chart.points.append(Point(size / MEGA, row.figures[yard], row.label, style, mark))
    for subject in subjects:
        chart.points.extend(_trials(subject, yard, in_bytes))
    return chart


def _of_trials(subjects: Sequence[Subject], drawn: set[Yardstick]) -> list[Chart]:
    """Plots of what searches have tried by a figure that no model has otherwise."""
    in_bytes = all(subject.bytes is not None for subject in subjects)
    yards = dict.fromkeys(y for s in subjects for y in quality.trials(s.manifest) if y not in drawn)
    charts = [Chart(yard, "MB" if in_bytes else "million parameters") for yard in yards]
    for chart in charts:
        for subject in subjects:
            chart.points.extend(_trials(subject, chart.yard, in_bytes))
    return charts


def _trials(subject: Subject, yard: Yardstick, in_bytes: bool) -> list[Point]:
    points = []
    for trial in quality.trials(subject.manifest).get(yard, []):
        size = (subject.bytes_of(trial.params) if in_bytes else trial.params) or trial.params
        name = f"tried: {trial.ratio}" if trial.ratio == "dense" else f"tried: ratio {trial.ratio}"
        points.append(Point(size / MEGA, trial.score, name, "dot trial"))
    return points


def _figure(chart: Chart) -> Figure:
    better = "higher" if chart.yard.larger_is_better else "lower"
    title = f"{chart.yard.name} against size"
    own = [p for p in chart.points if p.label is not None]
    table = [
        {
            "": p.label,
            "model": p.name,
            f"size, {chart.unit}": f"{p.size:.3g}" if p.size < 1000 else human(p.size * MEGA),
            chart.yard.name: f"{p.value:.4g}",
        }
        for p in sorted(chart.points, key=lambda p: p.size)
    ]
    key = [(p.label, p.name) for p in own if p.label not in (None, "dense")]
    return Figure(
        title=title,
        caption=f"Measured on {chart.yard.of}; {better} is better. The line joins the models that "
        "no smaller one betters.",
        wide=_draw(chart, _SIZES[0], title),
        narrow=_draw(chart, _SIZES[1], title),
        key=[(str(mark), name) for mark, name in key],
        table=table,
    )


def _draw(chart: Chart, size: tuple[float, float], title: str) -> Markup:
    better = "higher is better" if chart.yard.larger_is_better else "lower is better"
    detail = "; ".join(f"{p.name}: {p.size:.3g} {chart.unit}, {p.value:.4g}" for p in chart.points)
    y_name = f"{chart.yard.name} ({better})"
    plot = Plot(size, title, detail, f"size, {chart.unit}", y_name)
    left, top, right, bottom = plot.frame
    plot.x = scales.around((p.size for p in chart.points), left, right, zero=True)
    plot.y = scales.around((p.value for p in chart.points), bottom, top)
    plot.axes()
    best = front(chart.points, chart.yard.larger_is_better)
    plot.line([(p.size, p.value) for p in best], "front", steps=True)
    for point in chart.points:
        hint = f"{point.name}: {point.size:.3g} {chart.unit}, {chart.yard.name} {point.value:.4g}"
        plot.dot(point.size, point.value, point.style, hint, 5 if point.label else 3.5)
    marks.write(
        plot,
        [(p.size, p.value, p.label) for p in chart.points if p.label is not None],
        [(p.size, p.value) for p in chart.points if p.label is None],
    )
    return plot.markup()
