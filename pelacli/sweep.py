"""What each of many budgets would give: plans from stored spectra, no weights. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import fsum
from statistics import median
from typing import Any

from pelacli import planning, recipe, replan, tables
from pelacli.errors import InfeasibleError, RequestError
from pelacli.plans import Plan
from pelacli.ranks import Spectrum
from pelacli.recipe import Decompose
from pelacli.spectra_file import Spectra

Row = dict[str, Any]

POLICIES = ("energy", "uniform")
STEPS = 10
MOST = 1000

_RANGE = re.compile(r"(.+?)\.\.([^:]+)(?::(.*))?")
_SYNTAX = "give a range as 0.9..0.3 or 0.9..0.3:7, or a list as 0.9,2/3,1/2"


def budgets(text: str) -> list[str]:
    """The ratios of ``--sweep``, each as ``--ratio`` takes it.

    Args:
        text: "A..B" (10 ratios, ends included), "A..B:N", or a list "A,B,…"; decimals or
            fractions. What lies between the ends of a range is rounded to four decimals, or to as
            many as tell them apart.

    Raises:
        RequestError: it is none of these, or a ratio is not above 0 and at most 1.
    """
    found = _RANGE.fullmatch(text.strip())
    try:
        if found is None:
            listed = [part.strip() for part in text.split(",")]
            if len(listed) < 2:
                raise ValueError(_SYNTAX)
            for one in listed:
                recipe.parse_ratio(one)
            return listed
        first, last = found[1].strip(), found[2].strip()
        ends = recipe.parse_ratio(first), recipe.parse_ratio(last)
        count = STEPS if found[3] is None else _count(found[3])
        if ends[0] == ends[1]:
            raise ValueError(f"its ends are equal; {_SYNTAX}")
        return [first, *_between(*ends, count - 2), last]
    except ValueError as error:
        raise RequestError(f"--sweep {text}: {error}") from None


@dataclass(frozen=True)
class Sweep:
    """One model at many budgets.

    Attributes:
        section: what all budgets share: policy, scope, unit, limits and pins.
        rows: one per budget. ``ratio`` as asked for, and ``achieved`` of what scope and unit count;
            ``params`` and ``flops`` of the whole model (None where unknown); ``energy`` kept, 0 to
            1; ``damage``, the energy that is dropped, in the unit of the spectra; how many of all
            linear layers are ``factorised`` and ``dense``, and the ranks of the former. A budget
            that can't be met has its ``problem`` and the ``smallest`` ratio that can, and None in
            all else.
    """

    spectra: Spectra
    section: Decompose
    rows: list[Row]


def run(spectra: Spectra, ratios: Sequence[str], given: Mapping[str, Any], where: str) -> Sweep:
    """Plan each budget.

    Args:
        ratios: as `budgets` gives them.
        given: scope, policy, unit; None: as when the spectra were made. The policy is then energy
            where it was one that has no ratio.
        where: the spectra's file, for error messages.

    Raises:
        RequestError: what is given doesn't fit the spectra, whatever the ratio.
    """
    if given.get("policy") not in (None, *POLICIES):
        raise RequestError(f"--policy {given['policy']}: a sweep has {' and '.join(POLICIES)}")
    section = planning.settings(spectra.about.section, {"ratio": ratios[0], **given}, where)
    rows = []
    for ratio in ratios:
        try:
            asked = section.model_copy(update={"ratio": ratio})
            rows.append(_row(spectra, ratio, replan.choose(spectra, asked)))
        except InfeasibleError as error:
            cannot = {"ratio": ratio, "problem": str(error), "smallest": error.smallest}
            rows.append(dict.fromkeys(_COLUMNS) | cannot)
    return Sweep(spectra, section, rows)


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


def damage(plan: Plan, spectra: Sequence[Spectrum]) -> float:
    """The energy that a plan drops, in the unit of the spectra."""
    ranks = plan.ranks()
    return fsum(float(s.energies[ranks[s.name] :].sum()) for s in spectra if s.name in ranks)


_COLUMNS = (
    "ratio", "achieved", "params", "flops", "energy", "damage", "factorised", "dense",
    "rank_min", "rank_median", "rank_max", "smallest", "problem",
)  # fmt: skip


def _row(spectra: Spectra, ratio: str, plan: Plan) -> Row:
    record = planning.applied(spectra.about.dense, plan)
    ranks = sorted(plan.ranks().values())
    assert plan.used is not None
    assert plan.total
    figures = (
        ratio,
        plan.used / plan.total,
        record.params.after,
        None if record.flops is None else record.flops.after,
        plan.energy,
        damage(plan, spectra.layers),
        len(ranks),
        len(record.layers) - len(ranks),
        ranks[0] if ranks else None,
        float(median(ranks)) if ranks else None,
        ranks[-1] if ranks else None,
        None,
        None,
    )
    return dict(zip(_COLUMNS, figures, strict=True))


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text.strip()) or not 2 <= int(text) <= MOST:
        raise ValueError(f"{text!r} is no number of budgets from 2 to {MOST}; {_SYNTAX}")
    return int(text)


def _between(first: Fraction, last: Fraction, count: int) -> list[str]:
    """So many ratios evenly between two, as decimals that are short and still differ."""
    exact = [first + (last - first) * n / (count + 1) for n in range(1, count + 1)]
    digits = 4
    while True:
        rounded = [Decimal(round(value * 10**digits)).scaleb(-digits) for value in exact]
        if 0 not in rounded and len({first, last, *map(Fraction, rounded)}) == count + 2:
            return [f"{value.normalize():f}" for value in rounded]
        digits += 1
