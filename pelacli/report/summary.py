"""Several models side by side: a row for each, after the dense model that they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pelacli.manifest.evaluations import EvaluationRecord
from pelacli.report import quality
from pelacli.report.quality import Yardstick
from pelacli.report.subject import Subject, megabytes
from pelacli.report.tables import Row, human

# Columns of `rows_for_people` that a narrow terminal can do without, the first one first.
DISPENSABLE = ("FLOPs", "params", "gate")


_OTHERS = 2  # figures beside the main metrics


@dataclass(frozen=True)
class Compared:
    """One row of a comparison.

    Attributes:
        number: from 1 on, of the models that the report is about; None of a dense model beside
            them.
        dense: the row of its dense model, or None.
        figures: by yardstick.
        latency_ms: of a batch, and what it holds for.
        speedup: how many times as fast as the dense model, where both took turns.
        drop: points that the dense model is ahead.
        agreed_by: the figure of agreement that dropped, where it was not the main metric.
        max_drop, passed: the gate that `pela eval` held it to.
    """

    label: str
    number: int | None
    params: int
    bytes: int | None = None
    flops: int | None = None
    dense: Compared | None = None
    figures: dict[Yardstick, float] = field(default_factory=dict)
    latency_ms: float | None = None
    timed: str | None = None
    speedup: float | None = None
    drop: float | None = None
    agreed_by: str | None = None
    max_drop: float | None = None
    passed: bool | None = None


def compare(subjects: Sequence[Subject]) -> list[Compared]:
    """The models in their order, those of one dense model together after it."""
    groups: dict[Any, list[tuple[int, Subject]]] = {}
    for number, subject in enumerate(subjects, 1):
        groups.setdefault(subject.original, []).append((number, subject))
    return [row for group in groups.values() for row in _group(group)]


def yardsticks(rows: Sequence[Compared]) -> list[Yardstick]:
    """Those by which the rows can be compared: the main metrics, and the figures beside them that
    most of the models have; the cosine says what the relative error says, and gives way."""
    own = [row for row in rows if row.dense is not None] or rows
    known = dict.fromkeys(yard for row in own for yard in row.figures)
    others = [yard for yard in known if not yard.decides]
    preferred = [yard for yard in others if yard.dense != 1.0] or others
    most = sorted(preferred, key=lambda yard: -sum(yard in row.figures for row in own))
    return [yard for yard in known if yard.decides] + most[:_OTHERS]


def rows_for_people(subjects: Sequence[Subject]) -> list[Row]:
    """The comparison as a table of few columns: what is unknown of all has none."""
    rows = compare(subjects)
    yards = _shown(yardsticks(rows))
    table = [_row(row, yards) for row in rows]
    telling = {name for row in table for name, value in row.items() if value is not None}
    return [{name: value for name, value in row.items() if name in telling} for row in table]


def _shown(yards: Sequence[Yardstick]) -> list[Yardstick]:
    """Those for a terminal: what decides, else the first."""
    return [yard for yard in yards if yard.decides] or [*yards[:1]]


def _row(row: Compared, yards: Sequence[Yardstick]) -> Row:
    latency = None if row.latency_ms is None else f"{row.latency_ms:.4g}"
    named: Row = {"model": row.label, "MB": megabytes(row.bytes).removesuffix(" MB")}
    named |= {"params": human(row.params), "FLOPs": human(row.flops)}
    for yard in yards:
        value = row.figures.get(yard)
        name = yard.name if yard.name not in named else f"{yard.name} ({yard.of})"
        named[name] = None if value is None else f"{value:.4g}"
    of = f" of {row.agreed_by}" if row.agreed_by else ""
    named["drop"] = None if row.drop is None else f"{row.drop:.2f}{of}"
    named["gate"] = gate(row)
    speed = None if row.speedup is None else f"{row.speedup:.2f} ×"
    return named | {"ms per batch": latency, "speed": speed}


def gate(row: Compared) -> str | None:
    """Whether the gate was passed, in words."""
    if row.passed is None:
        return None
    return f"{'passed' if row.passed else 'failed'} (≤ {row.max_drop:g})"


def _group(group: Sequence[tuple[int, Subject]]) -> Iterator[Compared]:
    dense = _dense_row([subject for _, subject in group])
    own = next((pair for pair in group if pair[1].is_dense), None)
    if own is not None:  # it is one of those that were asked for
        row = _own_row(*own, None)
        dense = replace(
            row,
            figures=dense.figures | row.figures,
            latency_ms=row.latency_ms or dense.latency_ms,
            timed=row.timed or dense.timed,
        )
    yield dense
    for number, subject in group:
        if own is None or number != own[0]:
            yield _own_row(number, subject, dense)


def _dense_row(subjects: Sequence[Subject]) -> Compared:
    """What is known of the dense model from those that were made of it."""
    first = subjects[0]
    manifest = first.manifest
    figures: dict[Yardstick, float] = {}
    latency, timed = None, None
    for subject in subjects:
        figures |= quality.dense_figures(subject)
        for record in subject.evaluations:
            measured = (record.baseline or {}).get("latency_ms")
            if measured is not None:
                latency, timed = float(measured), _conditions(record)
    return Compared(
        label=f"{manifest.source.name} (dense)",
        number=None,
        params=manifest.params.before,
        bytes=first.dense_bytes,
        flops=manifest.flops.before if manifest.flops else None,
        figures=figures,
        latency_ms=latency,
        timed=timed,
    )


def _own_row(number: int, subject: Subject, dense: Compared | None) -> Compared:
    manifest = subject.manifest
    timed = [record for record in subject.evaluations if record.latency_ms is not None]
    dropped = [record for record in subject.evaluations if record.drop is not None]
    gated = [record for record in subject.evaluations if record.passed is not None]
    return Compared(
        label=subject.label,
        number=number,
        params=manifest.params.after,
        bytes=subject.bytes,
        flops=manifest.flops.after if manifest.flops else None,
        dense=dense,
        figures=quality.figures(subject),
        latency_ms=timed[-1].latency_ms if timed else None,
        timed=_conditions(timed[-1]) if timed else None,
        speedup=_speedup(timed[-1]) if timed else None,
        drop=dropped[-1].drop if dropped else None,
        agreed_by=_agreed_by(dropped[-1]) if dropped else None,
        max_drop=gated[-1].max_drop if gated else None,
        passed=gated[-1].passed if gated else None,
    )


def _agreed_by(record: EvaluationRecord) -> str | None:
    """What of the agreement dropped; None where it was the main metric."""
    return None if record.drop_of == record.main_metric else record.drop_of


def _speedup(record: EvaluationRecord) -> float | None:
    dense = (record.baseline or {}).get("latency_ms")
    return float(dense) / record.latency_ms if dense and record.latency_ms else None


def _conditions(record: EvaluationRecord) -> str | None:
    timed = record.timed
    if timed is None:
        return None
    count = "1 thread" if timed.threads == 1 else f"{timed.threads} threads"
    threads = f", {count}" if timed.device == "cpu" else ""
    return f"batch of {timed.batch_size} on {timed.model}{threads}"
