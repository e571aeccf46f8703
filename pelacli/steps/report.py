"""Show what models cost: artefacts from their manifests, plain models by counting them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pelacli import console
from pelacli.errors import RequestError
from pelacli.manifest import document, lookup
from pelacli.manifest.document import Manifest
from pelacli.planning import stored, sweep
from pelacli.report import curves, sweeps, tables

_RUNS = Path("runs")


def run(refs: Sequence[str], *, by: str, style: str, arch: str | None = None) -> None:
    """Print the report.

    Args:
        refs: artefacts, run directories or models; none means every artefact below runs/.
        by: rows per "layer", "kind" or "whole".
        style: "table", "json", "csv" or "markdown".
    """
    if by not in ("layer", "kind", "whole"):
        raise RequestError(f"--by {by}: there is layer, kind and whole")
    level = cast(tables.Level, by)
    _check_style(style)
    found: dict[str, Manifest] = {}
    courses: dict[str, curves.Course] = {}
    for ref in refs or _all():
        files = curves.find(ref)
        courses |= {label: curves.read(file) for label, file in files.items()}
        if not files or lookup.artefacts(Path(ref)):  # else a run whose artefact is still to come
            found |= _manifests(ref, arch)
    if style == "json" and found:
        console.print_json([one | _series(one, courses) for one in tables.to_json(found)])
    elif not found:
        run_curves(refs, style=style)
    elif style == "csv":
        console.stdout().print(tables.to_csv(found, level), markup=False, highlight=False, end="")
    elif style == "markdown":
        console.stdout().print(tables.to_markdown(found, level), markup=False, highlight=False)
    elif level == "whole":
        console.stdout().print(tables.to_table(found, level))
    else:
        for label, record in found.items():  # a table each: a column of equal names is no help
            console.stdout().print(label, markup=False, highlight=False, style="bold")
            console.stdout().print(tables.to_table({label: record}, level))
    if found and refs and style == "table":
        _draw(courses)


def _series(model: Mapping[str, Any], courses: Mapping[str, curves.Course]) -> dict[str, Any]:
    """The curves of a model's last training, where it has some."""
    course = courses.get(model["model"])
    return {} if course is None else {"curves": course.series}


def run_curves(refs: Sequence[str], *, style: str) -> None:
    """Draw the course of training.

    Args:
        refs: artefacts with a course, run directories, runs that are going on, metrics files; none
            means runs/.
        style: "table", "json", "csv" or "markdown".

    Raises:
        RequestError: there is no course.
    """
    _check_style(style)
    found: dict[str, curves.Course] = {}
    for ref in refs or [str(_RUNS)]:
        files = curves.find(ref)
        if not files:
            raise RequestError(
                f"{ref}: there is no {curves.FILE}; `pela pretrain` and `pela finetune` write one"
            )
        found |= {label: curves.read(file) for label, file in files.items()}
    if style == "json":
        console.print_json(curves.to_json(found))
    elif style == "csv":
        text = tables.rows_csv(curves.point_rows(found))
        console.stdout().print(text, markup=False, highlight=False, end="")
    else:
        _draw(found, style)


def _draw(found: Mapping[str, curves.Course], style: str = "table") -> None:
    out = console.stdout()
    for label, course in found.items():
        out.print(curves.title(label, course), markup=False, highlight=False, style="bold")
        rows = curves.rows(course, out.width if sys.stdout.isatty() else 80)
        if style == "markdown":
            text = f"\n{tables.rows_markdown(rows)}\n"
            out.print(text, markup=False, highlight=False)
        else:
            out.print(tables.rows_table(rows))


def run_sweep(refs: Sequence[str], text: str, given: Mapping[str, Any], *, style: str) -> None:
    """Print what each of many budgets would give.

    Args:
        refs: artefacts, run directories or files of spectra; none means runs/.
        text: the budgets, as `pelacli.planning.sweep.budgets` takes them.
        given: scope, policy and unit; None: as when the spectra were made.
        style: "table", "json", "csv" or "markdown".

    Raises:
        RequestError: no stored spectra, or no budget of any model can be met.
    """
    _check_style(style)
    ratios = sweep.budgets(text)
    files = {label: file for ref in refs or [str(_RUNS)] for label, file in _spectra(ref).items()}
    found = {
        label: sweep.run(stored.load(file), ratios, given, str(file))
        for label, file in files.items()
    }
    rows = [row for one in found.values() for row in one.rows]
    if all(row["problem"] for row in rows):
        raise RequestError(rows[0]["problem"])
    if style == "json":
        console.print_json(sweeps.to_json(found))
    elif style == "csv":
        text = tables.rows_csv(sweeps.exact(found))
        console.stdout().print(text, markup=False, highlight=False, end="")
    else:
        for label, one in found.items():
            title = f"{label}: {sweeps.caption(one)}"
            console.stdout().print(title, markup=False, highlight=False, style="bold")
            if style == "markdown":
                text = f"\n{tables.rows_markdown(sweeps.human(one))}\n"
                console.stdout().print(text, markup=False, highlight=False)
            else:
                console.stdout().print(tables.rows_table(sweeps.human(one)))


def needs_sweep(given: Mapping[str, Any]) -> None:
    """Refuse what only a sweep knows."""
    for key, value in given.items():
        if value is not None:
            raise RequestError(f"--{key} {value}: belongs to --sweep, as in --sweep 0.9..0.3")


def _spectra(ref: str) -> dict[str, Path]:
    """Label → file of spectra, of what is named or lies below it."""
    path = Path(ref)
    if path.is_dir():
        below = {str(one): one / stored.FILE for one in lookup.artefacts(path)}
        found = {label: file for label, file in below.items() if file.is_file()}
    else:
        found = {ref: path} if stored.is_spectra(path) else {}
    if not found:
        raise RequestError(
            f"{ref}: there are no stored spectra; name what `pela decompose` wrote, or make some: "
            "pela decompose MODEL --ratio 0.5 --dry-run --spectra FILE"
        )
    return found


def _check_style(style: str) -> None:
    if style not in ("table", "json", "csv", "markdown"):
        raise RequestError(f"--format {style}: there is table, json, csv and markdown")


def _all() -> list[str]:
    paths = lookup.artefacts(_RUNS)
    if not paths:
        raise RequestError(
            f"{_RUNS}/: there are no artefacts; name an artefact or a model, or make one: "
            "pela decompose MODEL --ratio 0.5"
        )
    return [str(path) for path in paths]


def _manifests(ref: str, arch: str | None) -> dict[str, Manifest]:
    path = Path(ref)
    if document.is_artefact(path):
        return {ref: document.read(path)}
    below = lookup.artefacts(path) if path.is_dir() else []
    if below:
        return {str(one): document.read(one) for one in below}
    if stored.is_spectra(path):
        return {ref: stored.load(path).about.dense}
    # Only now torch is needed: a plain model has to be built to be counted.
    from pelacli.artefact import description
    from pelacli.lowrank import find
    from pelacli.models import opening

    local = path.exists()
    opened = opening.open(
        ref, weights="pretrained" if local else "random", arch=arch, meta=not local
    )
    layers = find.find_layers(opened.module, head=opened.head)
    spent = description.cost(opened, layers)
    return {
        ref: description.describe(opened, description.with_read_weights_dense(layers, spent), spent)
    }
