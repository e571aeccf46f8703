"""The page put together: what each section shows, given to the template."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from pelacli.manifest.document import StepRecord
from pelacli.messages import printable
from pelacli.recipe import toml_text
from pelacli.report import latencies, summary, tables
from pelacli.report.curves import Course
from pelacli.report.page import courses, depth, layers, spectra, sweeps, tradeoff
from pelacli.report.page.figure import Figure, Gallery
from pelacli.report.page.sweeps import Swept
from pelacli.report.subject import Subject, megabytes
from pelacli.report.summary import Compared, yardsticks
from pelacli.report.tables import human
from pelacli.version import __version__

GENERATOR = "pela"  # what the page says it was made by

_HERE = "pelacli.report.page"
# Of a step's figures: what a reader calls them, and what only the manifest needs.
_IN_WORDS = {"energy": "energy kept", "corrected": "refit", "one_shot": "without the refit",
             "rejected": "with the refit", "kl": "divergence"}  # fmt: skip
_FOR_MACHINES = ("sensitivity", "ridge")
_FIGURES = 12  # of a step, that are shown


@dataclass(frozen=True)
class Section:
    """What the page says of one model.

    Attributes:
        id: of its heading, for links.
        steps: (name, what it gave) of its history.
        columns: (name, whether it holds numbers) of the table of layers.
        recipes: (of which steps, text).
    """

    id: str
    subject: Subject
    facts: Sequence[tuple[str, str]]
    steps: Sequence[Mapping[str, str]]
    galleries: Sequence[Gallery]
    columns: Sequence[tuple[str, bool]]
    layers: Sequence[layers.LayerRow]
    recipes: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Content:
    """What a page is about.

    Attributes:
        courses: of trainings whose artefact is still to come.
        sweeps: of the models whose spectra are kept.
    """

    subjects: Sequence[Subject]
    courses: Mapping[str, Course] = field(default_factory=dict)
    sweeps: Sequence[Swept] = field(default_factory=list)


def render(content: Content) -> str:
    """The page, as HTML. The same content gives the same text."""
    rows = summary.compare(content.subjects)
    environment = Environment(
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "human": human,
        "megabytes": megabytes,
        "figure": _figure,
        "dotted": _dotted,
    }
    style, script = (_file(name) for name in ("page.css", "page.js"))
    numbers = {subject.label: n for n, subject in enumerate(content.subjects, 1)}
    figures = tradeoff.figures(content.subjects, rows) + _sweep_figures(content.sweeps, numbers)
    return environment.from_string(str(_file("page.html"))).render(
        version=__version__,
        generator=GENERATOR,
        title=_title(content),
        style=style,
        script=script,
        policy=_policy(script),
        rows=rows,
        yards=yardsticks(rows),
        largest=max((row.bytes or 0 for row in rows), default=0),
        gate=summary.gate,
        is_timed=any(row.latency_ms is not None for row in rows),
        is_gated=any(row.passed is not None for row in rows),
        conditions=list(dict.fromkeys(row.timed for row in rows if row.timed)),
        speeds=_speeds(content.subjects),
        figures=figures,
        sections=[_section(n, subject) for n, subject in enumerate(content.subjects, 1)],
        courses=[(label, courses.gallery(course)) for label, course in content.courses.items()],
        numeric=_is_numeric,
    )


def _shown(value: Any) -> Any:
    """What jinja2 prints for a value: text that can be seen, nothing for None, markup as it is."""
    if value is None:
        return ""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return printable(value)


def _title(content: Content) -> str:
    labels = [subject.label for subject in content.subjects] or [*content.courses]
    if len(labels) == 1:
        return labels[0]
    names = {subject.original: subject.manifest.source.name for subject in content.subjects}
    return f"{len(labels)} models" + (f" made from {names.popitem()[1]}" if len(names) == 1 else "")


def _section(number: int, subject: Subject) -> Section:
    manifest = subject.manifest
    galleries = [] if subject.is_dense else [depth.gallery(manifest)]
    if manifest.has_held_back_errors:
        galleries.append(depth.errors(manifest))
    if subject.spectra is not None:
        galleries.append(spectra.gallery(subject.spectra, manifest.layers))
    if subject.course is not None:
        galleries.append(courses.gallery(subject.course))
    return Section(
        id=f"model-{number}",
        subject=subject,
        facts=_facts(subject),
        steps=[_step(step) for step in manifest.history],
        galleries=galleries,
        columns=layers.columns(manifest),
        layers=layers.rows(manifest),
        recipes=_recipes(manifest.history),
    )


def _facts(subject: Subject) -> list[tuple[str, str]]:
    """What a model is, as (name, value)."""
    manifest = subject.manifest
    factorised = sum(layer.rank is not None for layer in manifest.layers)
    facts = [("made from", manifest.source.name)]
    if manifest.source.architecture:
        facts.append(("architecture", f"{manifest.source.architecture} of {manifest.library}"))
    facts.append(("layers", f"{factorised} of {len(manifest.layers)} linear layers factorised"))
    if manifest.policy is not None:
        ratio = f", {manifest.scope} ratio {manifest.ratio}" if manifest.ratio else ""
        facts.append(("plan", f"policy {manifest.policy}{ratio}, counted in {manifest.unit}"))
    if manifest.energy is not None:
        facts.append(("energy kept", f"{100 * manifest.energy:.4g} %"))
    return facts


def _step(step: StepRecord) -> dict[str, str]:
    return {
        "step": step.step,
        "took": _time(step.seconds),
        "seed": str(step.seed),
        "figures": ", ".join(_flat(step.metrics)[:_FIGURES]),
        "versions": ", ".join(f"{name} {version}" for name, version in step.versions.items()),
    }


def _flat(metrics: Mapping[str, Any], before: str = "") -> list[str]:
    """ "relative error 0.1234" for each number, those of nested groups with the group's name."""
    parts: list[str] = []
    for key, value in metrics.items():
        if key in _FOR_MACHINES:
            continue
        name = before + _IN_WORDS.get(key, key).replace("_", " ")
        if isinstance(value, Mapping):
            parts += _flat(value, f"{name}: ")
        elif isinstance(value, str | int | float):
            parts.append(f"{name} {tables.show(value)}")
    return parts


def _recipes(history: Sequence[StepRecord]) -> list[tuple[str, str]]:
    """(the steps, their recipe), once for steps that share one."""
    by_text: dict[str, list[str]] = {}
    for step in history:
        if step.recipe:
            by_text.setdefault(toml_text.of_document(step.recipe), []).append(step.step)
    return [(", ".join(steps), printable(recipe, keep="\n")) for recipe, steps in by_text.items()]


def _sweep_figures(all_swept: Sequence[Swept], numbers: Mapping[str, int]) -> list[Figure]:
    """One for each dense model and unit of damage: others can't be compared."""
    groups: dict[Any, list[Swept]] = {}
    for swept in all_swept:
        about = swept.sweep.spectra.about
        key = (about.dense.source.name, about.dense.params.before, swept.sweep.spectra.unit)
        groups.setdefault(key, []).append(swept)
    drawn = [sweeps.figure(group, numbers) for group in groups.values()]
    return [figure for figure in drawn if figure is not None]


def _speeds(subjects: Sequence[Subject]) -> dict[str, Any] | None:
    """The table of ``--latency``; None where nothing was timed."""
    timed = {s.label: s.speeds for s in subjects if s.speeds is not None}
    if not timed:
        return None
    return {"title": latencies.title(timed), "rows": latencies.human_rows(timed)}


def _figure(value: float | None) -> str:
    return tables.UNKNOWN if value is None else f"{value:.4g}"


def _dotted(name: str) -> Markup:
    """A layer's name, which a narrow column may break after its dots, and not inside a word."""
    return Markup(escape(printable(name)).replace(".", Markup(".<wbr>")))


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _is_numeric(value: Any) -> bool:
    return bool(re.match(r"[-+]?[.\d]|–?$", str(value)))


def _file(name: str) -> Markup:
    """A file of the page, which goes into it as it is."""
    return Markup(resources.files(_HERE).joinpath(name).read_text(encoding="utf-8"))


def _policy(script: str) -> str:
    """What the browser may load: nothing, and run no script but the page's own."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


__all__ = ["GENERATOR", "Compared", "Content", "render"]
