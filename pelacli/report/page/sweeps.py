"""What other ratios would give, planned from stored spectra: the predicted damage against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path

from markupsafe import Markup

from pelacli.planning.stored import Spectra
from pelacli.planning.sweep import Sweep
from pelacli.report.page import marks, scales
from pelacli.report.page.figure import Figure
from pelacli.report.page.svg import Plot
from pelacli.report.subject import MEGA, Subject

_SIZES = ((520, 340), (340, 300))
_STYLES = 6


@dataclass(frozen=True)
class Swept:
    """A sweep, and the models whose spectra it was made from."""

    sweep: Sweep
    subjects: list[Subject]


@dataclass(frozen=True)
class _Line:
    """One sweep as drawn.

    Attributes:
        points: (size, damage, ratio) of each ratio that can be met.
        own: (size, damage, number) of each of its models.
    """

    name: str
    unit: str
    points: list[tuple[float, float, str]]
    own: list[tuple[float, float, str]]


def figure(sweeps: Sequence[Swept], numbers: Mapping[str, int]) -> Figure | None:
    """One line for each sweep, all of one unit of damage; None where no ratio can be met.

    Args:
        numbers: label of a model → its number on the page.
    """
    lines = [line for line in (_line(swept, numbers) for swept in sweeps) if line.points]
    if not lines:
        return None
    labels = [subject.label for swept in sweeps for subject in swept.subjects]
    # Artefacts may be many, and their directory deep; what they were made from may be called alike.
    name = Path(labels[0]).name if len(labels) == 1 else _source(sweeps[0])
    several = [(f"line s{n % _STYLES}", line.name) for n, line in enumerate(lines)]
    rows = [
        {"spectra of": line.name, "ratio": ratio, f"size, {line.unit}": f"{size:.4g}",
         "damage": f"{damage:.4g}"}
        for line in lines
        for size, damage, ratio in line.points
    ]  # fmt: skip
    return Figure(
        title=f"What other ratios of {name} would give",
        caption=f"Planned from the stored spectra, without the weights. Damage: "
        f"{sweeps[0].sweep.spectra.unit}. It is what the cut is predicted to lose before any "
        "correction or training; lower is better. Numbers are the models above.",
        wide=_draw(lines, _SIZES[0]),
        narrow=_draw(lines, _SIZES[1]),
        key=several if len(lines) > 1 else [],
        table=rows,
    )


def _source(swept: Swept) -> str:
    """What a sweep's models were made from."""
    return swept.sweep.spectra.about.dense.source.name


def _line(swept: Swept, numbers: Mapping[str, int]) -> _Line:
    first = swept.subjects[0]
    points = [
        (_size(first, row["params"]), float(row["damage"]), str(row["ratio"]))
        for row in swept.sweep.rows
        if not row["problem"] and row["damage"]
    ]
    own = []
    for subject in swept.subjects:
        damage = _damage(subject)
        if damage:
            size = _size(subject, subject.manifest.params.after)
            own.append((size, damage, str(numbers[subject.label])))
    name = ", ".join(subject.label for subject in swept.subjects)
    return _Line(name, "million parameters" if first.bytes is None else "MB", points, own)


def _damage(subject: Subject) -> float:
    """The energy that a model's ranks leave out, in the unit of its spectra."""
    spectra: Spectra | None = subject.spectra
    if spectra is None:
        return 0.0
    ranks = {layer.name: layer.rank for layer in subject.manifest.layers}
    energies = {s.name: s.energies for s in spectra.layers}
    return fsum(
        float(energies[name][rank:].sum())
        for name, rank in ranks.items()
        if rank is not None and name in energies
    )


def _size(subject: Subject, params: int) -> float:
    return (subject.bytes_of(params) or params) / MEGA


def _draw(lines: Sequence[_Line], size: tuple[float, float]) -> Markup:
    unit = lines[0].unit
    detail = "; ".join(
        f"{line.name}: from {line.points[0][1]:.3g} at {line.points[0][0]:.3g} {unit} to "
        f"{line.points[-1][1]:.3g} at {line.points[-1][0]:.3g} {unit}"
        for line in lines
    )
    y_name = "predicted damage (lower is better)"
    plot = Plot(size, "predicted damage against size", detail, f"size, {unit}", y_name)
    left, top, right, bottom = plot.frame
    every = [point for line in lines for point in (*line.points, *line.own)]
    plot.x = scales.around((x for x, _, _ in every), left, right)
    plot.y = scales.around((y for _, y, _ in every), bottom, top, log=True)
    plot.axes()
    for n, line in enumerate(lines):
        plot.line([(x, y) for x, y, _ in line.points], f"s{n % _STYLES}")
        for x, y, ratio in line.points:
            hint = f"{line.name} at ratio {ratio}: {x:.4g} {unit}, damage {y:.4g}"
            plot.dot(x, y, f"dot s{n % _STYLES}", hint, 2.5)
    own = [point for line in lines for point in line.own]
    for x, y, number in own:
        plot.dot(x, y, "dot dense-mark", f"model {number}: {x:.4g} {unit}, damage {y:.4g}", 5)
    marks.write(plot, own, [(x, y) for line in lines for x, y, _ in line.points])
    return plot.markup()
