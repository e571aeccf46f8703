"""Gather what is recorded of models, and write it as one HTML page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pelacli.errors import RequestError
from pelacli.planning import stored
from pelacli.planning import sweep as planning_sweep
from pelacli.recipe import layout
from pelacli.report.page import render
from pelacli.report.page.render import Content
from pelacli.report.page.sweeps import Swept
from pelacli.report.subject import Subject
from pelacli.steps.report import Report
from pelacli.system import files

_RATIOS = "0.9..0.2:15"
_HEAD = 4096  # bytes, in which a page says who made it
_MADE_BY = re.compile(rf'<meta name="generator" content="{render.GENERATOR} ')


def check_target(path: Path) -> None:
    """Refuse a file that no page can be written to, before any work is done.

    Raises:
        RequestError: the path holds something else than a page of pela's, or lies below a file.
    """
    files.check_place(path)
    if path.is_dir():
        raise RequestError(f"{path}: is a directory; name a file in it, as {path / 'report.html'}")
    if path.exists() and not _is_page(path):
        raise RequestError(f"{path}: exists and is no page of pela's; choose another file")


def write(
    report: Report, path: Path, ratios: str | None = None, settings: Mapping[str, Any] | None = None
) -> None:
    """Write the page; at any time either the old or the new one is there.

    Args:
        ratios: of the sweeps, as `pelacli.planning.sweep.parse_ratios` takes them; None: the usual
            ones.
        settings: of the sweeps, as `pelacli.steps.report.run_sweep` takes them.

    Raises:
        RequestError: the path holds something else.
        PelaError: the disk refuses.
    """
    check_target(path)
    subjects = [_with_spectra(subject) for subject in report.subjects]
    going_on = {k: v for k, v in report.courses.items() if k not in report.manifests}
    wanted = planning_sweep.parse_ratios(ratios or _RATIOS)
    content = Content(subjects, going_on, _sweeps(subjects, wanted, settings or {}))
    # A name that is no text, as a file's may be, is shown with what can't be shown left out.
    page = render.render(content).encode("utf-8", "replace")
    files.write_or_refuse(path, page)


def _is_page(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _MADE_BY.search(file.read(_HEAD).decode("utf-8", "replace")) is not None
    except OSError:
        return False


def _with_spectra(subject: Subject) -> Subject:
    """With the spectra that its ranks were planned from, where they are kept: in it, or in the
    artefact of the step before it."""
    path = subject.place or Path(subject.label)
    steps = [s for s in subject.manifest.history if s.step == "decompose"]
    if not steps:
        if not stored.is_spectra(path):
            return subject
        return replace(subject, spectra=stored.load(path))
    for folder in (path, path.parent / layout.FOLDERS["decompose"]):
        file = stored.of_artefact(folder)
        if file is not None and stored.is_spectra(file):
            spectra = stored.load(file)
            if spectra.about.inputs == steps[-1].inputs:
                return replace(subject, spectra=spectra)
    return subject


def _sweeps(
    subjects: Sequence[Subject], ratios: Sequence[str], settings: Mapping[str, Any]
) -> list[Swept]:
    """One of each model whose spectra are kept; models whose sweeps are equal share one."""
    swept: list[Swept] = []
    for subject in subjects:
        if subject.spectra is None:
            continue
        try:
            sweep = planning_sweep.run(subject.spectra, ratios, settings, subject.label)
        except RequestError:
            continue  # they were planned by a policy that has no ratio
        alike = next((other for other in swept if other.sweep.rows == sweep.rows), None)
        if alike is None:
            swept.append(Swept(sweep, [subject]))
        else:
            alike.subjects.append(subject)
    return swept
