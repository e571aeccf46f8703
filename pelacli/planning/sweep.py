"""Many ratios planned from stored spectra, to compare what each would give. No torch."""

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
from pelacli.planning.choice import choose
from pelacli.planning.outcome import planned_manifest
from pelacli.planning.settings import from_stored
from pelacli.planning.stored import Spectra
from pelacli.ranks.plan import Plan
from pelacli.ranks.policies import registry
from pelacli.ranks.ratio import parse as parse_ratio
from pelacli.ranks.spectrum import Spectrum
from pelacli.recipe.decompose import Decompose

Row = dict[str, Any]

_USUAL_COUNT = 10  # ratios of a range that names no number
_MOST = 1000

_RANGE = re.compile(r"(.+?)\.\.([^:]+)(?::(.*))?")
_SYNTAX = "give a range as 0.9..0.3 or 0.9..0.3:7, or a list as 0.9,2/3,1/2"


def parse_ratios(text: str) -> list[str]:
    """The ratios of ``--sweep``, each as ``--ratio`` takes it.

    Args:
        text: "A..B" (10 ratios, ends included), "A..B:N", or a list "A,B,…"; decimals or
            fractions. What lies between the ends of a range is rounded to four decimals, or to as
            many as tell them apart.

    Raises:
        RequestError: it is none of these, or a ratio is not above 0 and at most 1.
    """
    is_range = _RANGE.fullmatch(text.strip())
    try:
        return _parse_range(*is_range.groups()) if is_range else _parse_list(text)
    except ValueError as error:
        raise RequestError(f"--sweep {text}: {error}") from None


@dataclass(frozen=True)
class Sweep:
    """One model at many ratios.

    Attributes:
        settings: what all plans share: policy, scope, unit, form, limits and pins.
        rows: one per ratio, with these columns; None where unknown.
            ``ratio``: as asked for; ``achieved``: of what scope and unit count.
            ``params``, ``flops``: of the whole model.
            ``energy``: share that is kept, 0 to 1.
            ``damage``: the energy that is dropped, in the unit of the spectra.
            ``factorised``, ``dense``: how many of all linear layers are.
            ``rank_min``, ``rank_median``, ``rank_max``: of the factorised layers.
            ``problem``: why the ratio can't be met, and ``smallest``: the smallest ratio that can;
            all else is None then.
    """

    spectra: Spectra
    settings: Decompose
    rows: list[Row]


def run(spectra: Spectra, ratios: Sequence[str], flags: Mapping[str, Any], where: str) -> Sweep:
    """Plan each ratio.

    Args:
        ratios: as `parse_ratios` gives them.
        flags: scope, policy, unit, form; None: as when the spectra were made. The policy is then
            energy where it was one that has no ratio.
        where: the spectra's file, for error messages.

    Raises:
        RequestError: the flags don't fit the spectra, whatever the ratio.
    """
    policies = registry.with_budget("ratio")
    if flags.get("policy") not in (None, *policies):
        raise RequestError(f"--policy {flags['policy']}: a sweep has {' and '.join(policies)}")
    about = spectra.about
    settings = from_stored(about.section, {"ratio": ratios[0], **flags}, where)
    rows = []
    for ratio in ratios:
        at_ratio = settings.model_copy(update={"ratio": ratio})
        try:
            plan = choose(spectra.layers, about.size, at_ratio)
        except InfeasibleError as error:
            problem = {"ratio": ratio, "problem": str(error), "smallest": error.smallest}
            rows.append(dict.fromkeys(_COLUMNS) | problem)
        else:
            rows.append(_row(spectra, ratio, plan))
    return Sweep(spectra, settings, rows)


def damage(plan: Plan, spectra: Sequence[Spectrum]) -> float:
    """The energy that a plan drops, in the unit of the spectra."""
    ranks = plan.ranks()
    return fsum(float(s.energies[ranks[s.name] :].sum()) for s in spectra if s.name in ranks)


_COLUMNS = (
    "ratio", "achieved", "params", "flops", "energy", "damage", "factorised", "dense",
    "rank_min", "rank_median", "rank_max", "smallest", "problem",
)  # fmt: skip


def _row(spectra: Spectra, ratio: str, plan: Plan) -> Row:
    manifest = planned_manifest(spectra.about.dense, plan)
    ranks = sorted(plan.ranks().values())
    assert plan.used is not None
    assert plan.total
    figures = {
        "ratio": ratio,
        "achieved": plan.used / plan.total,
        "params": manifest.params.after,
        "flops": None if manifest.flops is None else manifest.flops.after,
        "energy": plan.energy,
        "damage": damage(plan, spectra.layers),
        "factorised": len(ranks),
        "dense": len(manifest.layers) - len(ranks),
    }
    if ranks:
        figures |= {
            "rank_min": ranks[0],
            "rank_median": float(median(ranks)),
            "rank_max": ranks[-1],
        }
    return dict.fromkeys(_COLUMNS) | figures


def _parse_list(text: str) -> list[str]:
    ratios = [part.strip() for part in text.split(",")]
    if len(ratios) < 2:
        raise ValueError(_SYNTAX)
    for ratio in ratios:
        parse_ratio(ratio)
    return ratios


def _parse_range(first: str, last: str, count: str | None) -> list[str]:
    first, last = first.strip(), last.strip()
    ends = parse_ratio(first), parse_ratio(last)
    number = _USUAL_COUNT if count is None else _parse_count(count)
    if ends[0] == ends[1]:
        raise ValueError(f"its ends are equal; {_SYNTAX}")
    return [first, *_between(*ends, number - 2), last]


def _parse_count(text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text.strip()) or not 2 <= int(text) <= _MOST:
        raise ValueError(f"{text!r} is no number of budgets from 2 to {_MOST}; {_SYNTAX}")
    return int(text)


def _between(first: Fraction, last: Fraction, count: int) -> list[str]:
    """``count`` ratios evenly between two, as decimals that are short and still differ."""
    exact = [first + (last - first) * n / (count + 1) for n in range(1, count + 1)]
    digits = 4
    while True:
        rounded = [Decimal(round(value * 10**digits)).scaleb(-digits) for value in exact]
        if 0 not in rounded and len({first, last, *map(Fraction, rounded)}) == count + 2:
            return [f"{value.normalize():f}" for value in rounded]
        digits += 1
