"""How good models are, by every figure that is recorded of them, so that those with the same figure
can stand side by side. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pelacli.manifest.document import Manifest
from pelacli.manifest.evaluations import EvaluationRecord
from pelacli.report.subject import Subject

_AGREEMENT = {
    "relative_error": ("relative error to dense", False),
    "cosine": ("cosine to dense", True),
}


@dataclass(frozen=True)
class Yardstick:
    """A figure that says how good a model is.

    Attributes:
        name: as people read it.
        of: the samples that it is measured on.
        larger_is_better: of it.
        dense: what the dense model has by its definition; None where that is measured.
        decides: whether models are compared by it first.
    """

    name: str
    of: str
    larger_is_better: bool = True
    dense: float | None = None
    decides: bool = False


@dataclass(frozen=True)
class Trial:
    """A model that a quality budget has tried and not kept."""

    params: int
    score: float
    ratio: str


def figures(subject: Subject) -> dict[Yardstick, float]:
    """Yardstick → the model's figure. Of several evaluations the latest counts."""
    known: dict[Yardstick, float] = {}
    for record in subject.evaluations:
        known |= _of_evaluation(record)
    return known | dict(_of_history(subject.manifest))


def dense_figures(subject: Subject) -> dict[Yardstick, float]:
    """The same of the dense model that it was compared with."""
    known = {yard: yard.dense for yard in figures(subject) if yard.dense is not None}
    for record in subject.evaluations:
        if record.baseline is not None:
            metrics = record.baseline.get("metrics") or {}
            known |= dict(_metrics(record, metrics))
    return known


def trials(manifest: Manifest) -> dict[Yardstick, list[Trial]]:
    """What the searches for the smallest model within a quality budget have tried: the dense model
    is among them."""
    tried: dict[Yardstick, list[Trial]] = {}
    for step in manifest.history:
        rows, name = step.metrics.get("curve"), step.metrics.get("metric")
        if not isinstance(rows, list) or not isinstance(name, str):
            continue
        yard = Yardstick(name.replace("_", " "), f"{_judged_on(step.recipe)} (while it was cut)")
        tried[yard] = [
            Trial(int(row["params"]), float(row["score"]), str(row.get("asked") or "dense"))
            for row in rows
            if isinstance(row, dict) and _is_number(row.get("params"), row.get("score"))
        ]
    return {yard: rows for yard, rows in tried.items() if rows}


def _of_evaluation(record: EvaluationRecord) -> dict[Yardstick, float]:
    known = dict(_metrics(record, record.metrics))
    agreement = record.agreement or {}
    for key, (name, larger) in _AGREEMENT.items():
        value = agreement.get(key)
        if value is not None:
            known[Yardstick(name, _data_of(record), larger, 1.0 if larger else 0.0)] = value
    return known


def _metrics(record: EvaluationRecord, values: dict[str, Any]) -> Iterator[tuple[Yardstick, float]]:
    """The main metric, and the perplexity of a language model."""
    for name, larger in ((record.main_metric, True), ("perplexity", False)):
        if name and _is_number(values.get(name)):
            decides = name == record.main_metric
            yield Yardstick(name, _data_of(record), larger, decides=decides), float(values[name])


def _of_history(manifest: Manifest) -> Iterator[tuple[Yardstick, float]]:
    """How far the model was from the dense one on samples that were held back from the step that
    made it: a later step that did not measure it leaves it unknown."""
    if not manifest.history:
        return
    step = manifest.history[-1]
    held_back = step.metrics.get("held_back")
    measured = held_back if step.step == "decompose" else step.metrics
    of = "samples held back" + (" while it was cut" if step.step == "decompose" else "")
    if not isinstance(measured, dict):
        return
    names = {"relative_error": "relative error to dense", "kl": "divergence, nats a token"}
    for key, name in names.items():
        if _is_number(measured.get(key)):
            yield Yardstick(name, of, False, 0.0), float(measured[key])


def _data_of(record: EvaluationRecord) -> str:
    data = PurePath(record.data or "").name or "its data"
    return f"{data}, {record.split}" if record.split else data


def _judged_on(recipe: dict[str, Any]) -> str:
    section = recipe.get("decompose")
    data = (section.get("data") if isinstance(section, dict) else None) or recipe.get("data")
    name = data.get("dataset") if isinstance(data, dict) else None
    return PurePath(str(name)).name if name else "its data"


def _is_number(*values: Any) -> bool:
    return all(isinstance(v, int | float) and abs(v) < float("inf") for v in values)
