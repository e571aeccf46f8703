"""A sweep over budgets as rows, for people, for CSV and for JSON."""

from __future__ import annotations

from collections.abc import Mapping

from pelacli.planning.sweep import Row, Sweep
from pelacli.report import tables


def to_json(sweeps: Mapping[str, Sweep]) -> list[Row]:
    """The document of ``pela report --sweep --json``: exact figures, None where unknown."""
    return [
        {
            "model": label,
            "source": one.spectra.about.dense.source.model,
            "policy": one.section.policy,
            "scope": one.section.scope,
            "unit": one.section.unit,
            "samples": one.spectra.about.samples,
            "damage_unit": one.spectra.unit,
            "params": one.spectra.about.dense.params.before,
            "flops": one.spectra.about.dense.flops and one.spectra.about.dense.flops.before,
            "budgets": one.rows,
        }
        for label, one in sweeps.items()
    ]


def exact(sweeps: Mapping[str, Sweep]) -> list[Row]:
    """All rows with the model's label before them, for CSV."""
    return [{"model": label, **row} for label, one in sweeps.items() for row in one.rows]


def human(one: Sweep) -> list[Row]:
    """The rows in human units."""
    rows = []
    for row in one.rows:
        low, middle, high = row["rank_min"], row["rank_median"], row["rank_max"]
        achieved, energy = row["achieved"], row["energy"]
        rows.append(
            {
                "ratio": row["ratio"],
                "achieved": None if achieved is None else f"{achieved:.4f}",
                "parameters": tables.human(row["params"]),
                "FLOPs": tables.human(row["flops"]),
                "energy kept": None if energy is None else f"{100 * energy:.2f}%",
                "damage": None if row["damage"] is None else tables.human(row["damage"]),
                "factorised": row["factorised"],
                "dense": row["dense"],
                "ranks, median": None if low is None else f"{low}–{high}, {middle:g}",
            }
        )
    if any(row["problem"] for row in one.rows):
        for shown, row in zip(rows, one.rows, strict=True):
            least = "none can be met" if row["smallest"] is None else f"smallest {row['smallest']}"
            shown["note"] = f"not possible: {least}" if row["problem"] else ""
    return rows


def caption(one: Sweep) -> str:
    """What the rows of a sweep share, and the unit of the damage."""
    about, section = one.spectra.about, one.section
    noun = "FLOPs" if section.unit == "flops" else "parameters"
    whose = "the model's" if section.scope == "model" else "the factorised layers'"
    samples = f" ({about.samples} samples)" if about.samples else " (no calibration)"
    return (
        f"{about.dense.source.model}: policy {section.policy}, ratio of {whose} {noun}; "
        f"damage: {one.spectra.unit}{samples}"
    )
