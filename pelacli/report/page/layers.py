"""The table of layers: what a cell shows, and what it is sorted by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pelacli.manifest.document import Count, LayerRecord, Manifest
from pelacli.report.tables import UNKNOWN, human


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what it shows.
        value: the number that its column is sorted by; None sorts by the text, and last.
    """

    text: str
    value: float | None = None


ERROR = "held-back error"
COLUMNS = (
    ("layer", False), ("shape", True), ("rank", True), ("form", False), ("energy lost", True),
    (ERROR, True), ("params before", True), ("params after", True), ("FLOPs before", True),
    ("FLOPs after", True),
)  # fmt: skip


def columns(manifest: Manifest) -> list[tuple[str, bool]]:
    """(name, whether it holds numbers) of each column that says something of the model."""
    with_error = manifest.has_held_back_errors
    return [column for column in COLUMNS if column[0] != ERROR or with_error]


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        form: by which rows are filtered: "factors", "pivots" or "dense".
    """

    form: str
    cells: list[Cell]


def rows(manifest: Manifest) -> list[LayerRow]:
    """One for each layer, in the order of the model."""
    with_error = manifest.has_held_back_errors
    return [_row(layer, with_error) for layer in manifest.layers]


def _row(layer: LayerRecord, with_error: bool) -> LayerRow:
    out, in_ = layer.shape
    full = min(layer.shape)
    form = layer.form or "dense"
    reason = f"dense: {layer.reason}" if layer.rank is None and layer.reason else form
    return LayerRow(
        form,
        [
            Cell(layer.name),
            Cell(f"{out} × {in_}", float(out * in_)),
            Cell(UNKNOWN if layer.rank is None else f"{layer.rank} of {full}", layer.rank),
            Cell(reason),
            _lost(layer),
            *([_error(layer)] if with_error else []),
            *_count(layer.params),
            *_count(layer.flops),
        ],
    )


def _lost(layer: LayerRecord) -> Cell:
    if layer.energy is None or layer.rank is None:
        return Cell(UNKNOWN)
    lost = max(0.0, 1.0 - layer.energy)
    return Cell(f"{100 * lost:.3g} %", lost)


def _error(layer: LayerRecord) -> Cell:
    error = layer.held_back_error
    return Cell(UNKNOWN if error is None else f"{error:.3g}", error)


def _count(count: Count | None) -> list[Cell]:
    values: list[Any] = [None, None] if count is None else [count.before, count.after]
    return [Cell(human(value), value) for value in values]
