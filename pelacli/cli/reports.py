"""Print the reports: costs, curves of training and sweeps, as tables, JSON, CSV or Markdown."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import cast

from pelacli import console
from pelacli.cli import terminal
from pelacli.errors import RequestError
from pelacli.planning.sweep import Sweep
from pelacli.report import costs, curves, latencies, summary, sweeps, tables
from pelacli.report.costs import Level
from pelacli.report.curves import Course
from pelacli.report.tables import Row, Style
from pelacli.steps.report import Report

_PIPE_WIDTH = 80  # characters of a line of curves off a terminal


def style_of(format_: str | None, *, json: bool) -> Style:
    """The style that ``--format`` and ``--json`` ask for.

    Raises:
        RequestError: there is none of this name, or they ask for two.
    """
    if json and format_ not in (None, "json"):
        raise RequestError(f"--json and --format {format_} are two formats; give one")
    text = "json" if json else format_ or "table"
    if text not in ("table", "json", "csv", "markdown"):
        raise RequestError(f"--format {text}: give table, json, csv or markdown")
    return cast(Style, text)


def level_of(text: str) -> Level:
    """What ``--by`` asks a row for.

    Raises:
        RequestError: there is none of this name.
    """
    if text not in ("layer", "kind", "whole"):
        raise RequestError(f"--by {text}: give layer, kind or whole")
    return cast(Level, text)


def print_report(report: Report, by: Level, style: Style, *, with_curves: bool) -> None:
    """Print the costs of models, or the curves alone where there is only an unfinished run.

    Args:
        with_curves: draw the curves below the tables; JSON always holds them.
    """
    if not report.manifests:
        print_curves(report.courses, style)
    elif style == "json":
        console.print_json(_documents(report))
    elif style == "csv":
        rows = costs.exact_rows(report.manifests, by)
        if by == "whole":
            sizes = {subject.label: subject.bytes for subject in report.subjects}
            rows = [row | {"bytes": sizes[row["model"]]} for row in rows]
        terminal.print_text(tables.to_csv(rows), end="")
    elif style == "markdown":
        compared = _compared(report)
        parts = [compared] if compared else []
        parts.append(costs.human_rows(report.manifests, by))
        terminal.print_text("\n\n".join(map(tables.to_markdown, parts)))
    else:
        _print_costs(report, by)
        if with_curves:
            print_curves(report.courses, "table")


def print_speeds(report: Report, style: Style) -> None:
    """Print how fast models are, and on standard error where low rank is slower than dense; JSON
    holds their costs too."""
    if style == "json":
        console.print_json(_documents(report))
    elif style == "csv":
        terminal.print_text(tables.to_csv(latencies.exact_rows(report.speeds)), end="")
    else:
        rows = latencies.human_rows(report.speeds)
        if style == "markdown":
            terminal.print_text(tables.to_markdown(rows))
        else:
            terminal.print_heading(latencies.title(report.speeds))
            terminal.print_table(rows)
    for label, speeds in report.speeds.items():
        line = latencies.slower_than_dense(label, speeds, report.manifests[label])
        if line is not None:
            console.warn(line)


def _documents(report: Report) -> list[Row]:
    documents = costs.documents(report.manifests)
    subjects = {subject.label: subject for subject in report.subjects}
    for document in documents:
        course = report.courses.get(document["model"])
        if course is not None:
            document["curves"] = course.series
        subject = subjects[document["model"]]
        document["bytes"] = subject.bytes
        document["evaluations"] = [e.model_dump(mode="json") for e in subject.evaluations]
        speeds = report.speeds.get(document["model"])
        if speeds is not None:
            document["latency"] = latencies.document(speeds)
    return documents


def _compared(report: Report) -> list[Row]:
    """The models side by side with their dense model; nothing where a dense model is alone."""
    rows = summary.rows_for_people(report.subjects)
    return rows if len(rows) > 1 else []


def _print_costs(report: Report, by: Level) -> None:
    compared = _compared(report)
    if compared:
        terminal.print_table(compared, summary.DISPENSABLE)
    if by == "whole":
        terminal.print_table(costs.human_rows(report.manifests, by), costs.DISPENSABLE)
        return
    for label, manifest in report.manifests.items():  # a column "model" would hold one name
        terminal.print_heading(label)
        terminal.print_table(costs.human_rows({label: manifest}, by), costs.DISPENSABLE)


def print_curves(courses: Mapping[str, Course], style: Style) -> None:
    """Draw courses of training, or print their points."""
    if style == "json":
        console.print_json(curves.documents(courses))
    elif style == "csv":
        terminal.print_text(tables.to_csv(curves.exact_rows(courses)), end="")
    else:
        width = console.stdout().width if sys.stdout.isatty() else _PIPE_WIDTH
        for label, course in courses.items():
            terminal.print_heading(curves.title(label, course))
            _print_rows(curves.human_rows(course, width), style)


def print_sweeps(results: Mapping[str, Sweep], style: Style) -> None:
    """Print what each budget of a sweep gives."""
    if style == "json":
        console.print_json(sweeps.to_json(results))
    elif style == "csv":
        terminal.print_text(tables.to_csv(sweeps.exact_rows(results)), end="")
    else:
        for label, sweep in results.items():
            terminal.print_heading(f"{label}: {sweeps.caption(sweep)}")
            _print_rows(sweeps.human_rows(sweep), style)


def _print_rows(rows: list[Row], style: Style) -> None:
    """Print the rows below a heading."""
    if style == "markdown":
        terminal.print_text(f"\n{tables.to_markdown(rows)}\n")
    else:
        terminal.print_table(rows)
