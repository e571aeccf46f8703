"""Read what models cost: artefacts from their manifests, plain models by counting them. And how
their training went, and what other budgets would give."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from pelacli import console
from pelacli.artefact import locating
from pelacli.errors import RequestError
from pelacli.manifest import digests, document, evaluations, integrity, lookup
from pelacli.manifest.document import Manifest
from pelacli.models import hub
from pelacli.models.hub import Files
from pelacli.planning import stored
from pelacli.planning import sweep as planning_sweep
from pelacli.planning.sweep import Sweep
from pelacli.report import curves
from pelacli.report.curves import Course
from pelacli.report.latencies import Speeds, TimingRequest
from pelacli.report.subject import Subject

_RUNS = Path("runs")


@dataclass(frozen=True)
class Recorded:
    """What is on record of one model.

    Attributes:
        manifest: with the cost of each layer.
        bytes: of a plain model's parameters, or of an artefact's weights on the hub; None where its
            weights lie on the disk.
        copy: directory of what is small of an artefact on the hub; None of any other model.
    """

    manifest: Manifest
    bytes: int | None = None
    copy: Path | None = None


@dataclass(frozen=True)
class Report:
    """What there is to say of models.

    Attributes:
        models: label → what is on record of it.
        courses: label → course of training, also of runs whose artefact is still to come.
        speeds: label → its latency, where that was asked for.
    """

    models: Mapping[str, Recorded]
    courses: Mapping[str, Course]
    speeds: Mapping[str, Speeds] = field(default_factory=dict)

    @cached_property
    def manifests(self) -> dict[str, Manifest]:
        return {label: model.manifest for label, model in self.models.items()}

    @cached_property
    def subjects(self) -> list[Subject]:
        """Each model with all that is recorded of it."""
        return [self._subject(label, model) for label, model in self.models.items()]

    def _subject(self, label: str, model: Recorded) -> Subject:
        place = model.copy or Path(label)
        return Subject(
            label=label,
            manifest=model.manifest,
            bytes=digests.weights_bytes(Path(label)) or model.bytes,
            evaluations=evaluations.read(place),
            course=self.courses.get(label),
            speeds=self.speeds.get(label),
            place=place,
        )


def run(
    refs: Sequence[str], *, arch: str | None = None, timing: TimingRequest | None = None
) -> Report:
    """Read the costs of models, and the courses of their training; and time them, if asked to.

    Args:
        refs: artefacts, run directories or models, also by their ids of the hub; none means every
            artefact below runs/.
        arch: architecture of a bare safetensors file.
        timing: how to time them; None: they are not run.

    Raises:
        RequestError: a model is unknown, or can't be read or timed, or there is none below runs/.
    """
    models: dict[str, Recorded] = {}
    courses: dict[str, Course] = {}
    for ref in refs or _artefacts_of_runs():
        of_ref = _courses(ref)
        courses |= of_ref
        if of_ref and not lookup.artefacts(Path(ref)):
            continue  # its artefact is still to come
        copy = _copy_of(ref)
        if copy is None:
            models |= _models(ref, arch)
        else:
            manifest = document.read(copy)
            models[ref] = Recorded(manifest, _recorded_bytes(manifest), copy)
            courses |= _courses_in(copy, ref)
    return Report(models, courses, {} if timing is None else _speeds(models, arch, timing))


def _copy_of(ref: str) -> Path | None:
    """What is small of an artefact on the hub; None where the name is of something else."""
    return None if Path(ref).exists() else hub.artefact(ref, Files.SMALL)


def _recorded_bytes(manifest: Manifest) -> int | None:
    """Of an artefact's weights, by its manifest; None where an older pela wrote it."""
    files = manifest.files or {}
    return (
        sum(record.size for name, record in files.items() if fnmatch(name, digests.WEIGHTS)) or None
    )


def run_curves(refs: Sequence[str]) -> dict[str, Course]:
    """Read the courses of training.

    Args:
        refs: artefacts with a course, run directories, runs that are going on, metrics files; none
            means runs/.

    Returns:
        label → course.

    Raises:
        RequestError: one of them has no course.
    """
    courses: dict[str, Course] = {}
    for ref in refs or [str(_RUNS)]:
        of_ref = _courses(ref) or _courses_in(_copy_of(ref), ref)
        if not of_ref:
            raise RequestError(
                f"{ref}: there is no {curves.FILE}; `pela heal` and `pela finetune` write one"
            )
        courses |= of_ref
    return courses


def run_sweep(refs: Sequence[str], budgets: str, settings: Mapping[str, Any]) -> dict[str, Sweep]:
    """Plan many budgets from stored spectra.

    Args:
        refs: artefacts, run directories or files of spectra; none means runs/.
        budgets: as `pelacli.planning.sweep.parse_ratios` takes them.
        settings: scope, policy, unit and form; None: as when the spectra were made.

    Returns:
        label → sweep.

    Raises:
        RequestError: no stored spectra, or no budget of any model can be met.
    """
    ratios = planning_sweep.parse_ratios(budgets)
    files = {label: file for ref in refs or [str(_RUNS)] for label, file in _spectra(ref).items()}
    sweeps = {
        label: planning_sweep.run(stored.load(file), ratios, settings, str(file))
        for label, file in files.items()
    }
    problems = [row["problem"] for sweep in sweeps.values() for row in sweep.rows]
    if all(problems):
        raise RequestError(problems[0])
    return sweeps


def _artefacts_of_runs() -> list[str]:
    paths = lookup.artefacts(_RUNS)
    if not paths:
        raise RequestError(
            f"{_RUNS}/: there are no artefacts; name an artefact or a model, or make one: "
            "pela decompose MODEL --ratio 0.5"
        )
    return [str(path) for path in paths]


def _courses(ref: str) -> dict[str, Course]:
    """Label → course of what is named or lies below it. A course that can't be read, as one that
    has no figures yet, is left out with a line where something else is there to report.

    Raises:
        RequestError: nothing else is.
    """
    return _read_courses(curves.metrics_files(ref), is_all=not lookup.artefacts(Path(ref)))


def _courses_in(copy: Path | None, ref: str) -> dict[str, Course]:
    """As `_courses`, of an artefact on the hub, of which this is the copy."""
    file = None if copy is None else copy / curves.FILE
    return _read_courses({} if file is None or not file.is_file() else {ref: file}, is_all=False)


def _read_courses(files: Mapping[str, Path], *, is_all: bool) -> dict[str, Course]:
    """Label → course.

    Args:
        files: label → file.
        is_all: nothing else is there to report.
    """
    courses, problems = {}, []
    for label, file in files.items():
        try:
            courses[label] = curves.read(file)
        except RequestError as error:
            problems.append(error)
    if problems and not courses and is_all:
        raise problems[0]
    for problem in problems:
        console.warn(str(problem))
    return courses


def _spectra(ref: str) -> dict[str, Path]:
    """Label → file of spectra of what is named or lies below it."""
    path = Path(ref)
    if path.is_dir():
        below = {str(artefact): stored.of_artefact(artefact) for artefact in lookup.artefacts(path)}
        files = {label: file for label, file in below.items() if file is not None}
    else:
        copy = _copy_of(ref)
        file = path if copy is None else stored.of_artefact(copy)
        files = {ref: file} if file is not None and stored.is_spectra(file) else {}
    if not files:
        raise RequestError(
            f"{ref}: there are no stored spectra; name what `pela decompose` wrote, or make some: "
            "pela decompose MODEL --ratio 0.5 --dry-run --spectra FILE"
        )
    return files


def _speeds(labels: Collection[str], arch: str | None, timing: TimingRequest) -> dict[str, Speeds]:
    """Label → how fast it is. Only here torch is needed."""
    from pelacli.artefact import loading
    from pelacli.steps.latency import time_model

    if not labels:
        raise RequestError("--latency: no artefact is there yet, only the course of its training")
    for label in labels:
        if stored.is_spectra(Path(label)):
            raise RequestError(f"{label}: holds spectra, no model that could be timed")
    speeds = {}
    for label in labels:
        is_there = Path(label).exists() or locating.names_artefact(label)
        weights = "pretrained" if is_there else "random"
        with console.file_progress(f"opening {label}"):
            opened, _ = loading.open(label, as_stored=True, weights=weights, arch=arch)
        speeds[label] = time_model(opened, timing)
    return speeds


def _models(ref: str, arch: str | None) -> dict[str, Recorded]:
    """Label → record of what is named or lies below it."""
    path = Path(ref)
    if document.is_artefact(path):
        return {ref: Recorded(_whole(path))}
    below = lookup.artefacts(path) if path.is_dir() else []
    if below:
        return {str(artefact): Recorded(_whole(artefact)) for artefact in below}
    if stored.is_spectra(path):
        return {ref: Recorded(stored.load(path).about.dense)}
    return {ref: _count(ref, arch)}


def _whole(path: Path) -> Manifest:
    """The manifest of an artefact whose weights are those that it speaks of."""
    manifest = document.read(path)
    with console.file_progress(f"checking {path}"):
        integrity.check(path, manifest)
    return manifest


def _count(ref: str, arch: str | None) -> Recorded:
    """What would be on record of a plain model. Only here torch is needed: the model is built."""
    from pelacli.artefact import description, loading
    from pelacli.lowrank import find

    local = Path(ref).exists()
    weights = "pretrained" if local else "random"
    with console.file_progress(f"opening {ref}"):
        opened, manifest = loading.open(ref, weights=weights, arch=arch, meta=not local)
    if manifest is not None:  # a low-rank model without its pela.json
        return Recorded(manifest, opened.bytes)
    layers = find.find_layers(opened.module, head=opened.head)
    cost = description.cost(opened, layers)
    layers = description.with_read_weights_dense(layers, cost)
    return Recorded(description.describe(opened, layers, cost), opened.bytes)
