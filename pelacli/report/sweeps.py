"""A sweep over ratios as rows, for people, for CSV and for JSON."""

from __future__ import annotations

from collections.abc import Mapping

from pelacli.planning.sweep import Sweep
from pelacli.report.tables import Row, human


def to_json(sweeps: Mapping[str, Sweep]) -> list[Row]:
    """The document of ``pela report --sweep --json``: exact figures, None where unknown.

    Args:
        sweeps: label → sweep.
    """
    return [_document(label, sweep) for label, sweep in sweeps.items()]


def exact_rows(sweeps: Mapping[str, Sweep]) -> list[Row]:
    """All rows with exact figures, the model's label before them, for CSV."""
    return [{"model": label, **row} for label, sweep in sweeps.items() for row in sweep.rows]


def human_rows(sweep: Sweep) -> list[Row]:
    """The rows in human units, with a note on those that can't be met, where there are some."""
    has_problems = any(row["problem"] for row in sweep.rows)
    return [_human_row(row) | ({"note": _note(row)} if has_problems else {}) for row in sweep.rows]


def caption(sweep: Sweep) -> str:
    """What the rows of a sweep share, and the unit of the damage."""
    about, settings = sweep.spectra.about, sweep.settings
    noun = "FLOPs" if settings.unit == "flops" else "parameters"
    whose = "the model's" if settings.scope == "model" else "the factorised layers'"
    form = "" if settings.form == "factors" else f", form {settings.form}"
    samples = f" ({about.samples} samples)" if about.samples else " (no calibration)"
    return (
        f"{about.dense.source.model}: policy {settings.policy}, ratio of {whose} {noun}{form}; "
        f"damage: {sweep.spectra.unit}{samples}"
    )


def _document(label: str, sweep: Sweep) -> Row:
    about, settings = sweep.spectra.about, sweep.settings
    return {
        "model": label,
        "source": about.dense.source.model,
        "policy": settings.policy,
        "scope": settings.scope,
        "unit": settings.unit,
        "form": settings.form,
        "samples": about.samples,
        "damage_unit": sweep.spectra.unit,
        "params": about.dense.params.before,
        "flops": about.dense.flops and about.dense.flops.before,
        "budgets": sweep.rows,
    }


def _human_row(row: Row) -> Row:
    low, middle, high = row["rank_min"], row["rank_median"], row["rank_max"]
    achieved, energy, damage = row["achieved"], row["energy"], row["damage"]
    return {
        "ratio": row["ratio"],
        "achieved": None if achieved is None else f"{achieved:.4f}",
        "parameters": human(row["params"]),
        "FLOPs": human(row["flops"]),
        "energy kept": None if energy is None else f"{100 * energy:.2f}%",
        "damage": None if damage is None else human(damage),
        "factorised": row["factorised"],
        "dense": row["dense"],
        "ranks, median": None if low is None else f"{low}–{high}, {middle:g}",
    }


def _note(row: Row) -> str:
    if not row["problem"]:
        return ""
    smallest = row["smallest"]
    return f"not possible: {'none can be met' if smallest is None else f'smallest {smallest}'}"
