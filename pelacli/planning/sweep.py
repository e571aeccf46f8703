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

from pelacli.errors import InfeasibleError, RequestError
from pelacli.planning import settings
from pelacli.planning.choice import choose
from pelacli.planning.outcome import planned_manifest
from pelacli.planning.stored import Spectra
from pelacli.ranks.plan import Plan
from pelacli.ranks.policies import registry
from pelacli.ranks.spectrum import Spectrum
from pelacli.recipe import fields
from pelacli.recipe.schema import Decompose

Row = dict[str, Any]

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
                fields.parse_ratio(one)
            return listed
        first, last = found[1].strip(), found[2].strip()
        ends = fields.parse_ratio(first), fields.parse_ratio(last)
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
    policies = registry.with_budget("ratio")
    if given.get("policy") not in (None, *policies):
        raise RequestError(f"--policy {given['policy']}: a sweep has {' and '.join(policies)}")
    section = settings.from_stored(spectra.about.section, {"ratio": ratios[0], **given}, where)
    rows = []
    for ratio in ratios:
        try:
            asked = section.model_copy(update={"ratio": ratio})
            rows.append(_row(spectra, ratio, choose(spectra.layers, spectra.about.size, asked)))
        except InfeasibleError as error:
            cannot = {"ratio": ratio, "problem": str(error), "smallest": error.smallest}
            rows.append(dict.fromkeys(_COLUMNS) | cannot)
    return Sweep(spectra, section, rows)


def damage(plan: Plan, spectra: Sequence[Spectrum]) -> float:
    """The energy that a plan drops, in the unit of the spectra."""
    ranks = plan.ranks()
    return fsum(float(s.energies[ranks[s.name] :].sum()) for s in spectra if s.name in ranks)


_COLUMNS = (
    "ratio", "achieved", "params", "flops", "energy", "damage", "factorised", "dense",
    "rank_min", "rank_median", "rank_max", "smallest", "problem",
)  # fmt: skip


def _row(spectra: Spectra, ratio: str, plan: Plan) -> Row:
    record = planned_manifest(spectra.about.dense, plan)
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
