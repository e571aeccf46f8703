"""A quality budget: the smallest model that loses few enough points, found with no training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pelacli import console
from pelacli.errors import DropError, InfeasibleError
from pelacli.lowrank import replace
from pelacli.lowrank.replace import Factors
from pelacli.manifest.document import Manifest
from pelacli.measure.judge import Judge
from pelacli.models.opened import OpenModel
from pelacli.planning import sweep
from pelacli.planning.outcome import planned_manifest
from pelacli.ranks import search
from pelacli.ranks.plan import Plan
from pelacli.ranks.spectrum import Spectrum
from pelacli.report import tables

EVALUATIONS = 8  # the dense model's included
_WHOLE = 10_000  # ratios of four digits, which --ratio can repeat
_TOLERANCE = 100


@dataclass
class Walk:
    """What was tried, and what is asked for.

    Attributes:
        metric: name of the figure in points; max_drop: how many of them may be lost.
        drop: of the model that was found; None where there is none.
        curve: one row per evaluation, the dense model's first: ``asked`` (the ratio planned for;
            None: dense), ``ratio`` and ``flops_ratio`` (of the whole model, achieved), ``params``,
            ``flops``, ``energy`` kept (0 to 1), ``damage`` (the energy lost, which predicts the
            drop), ``score``, ``drop``, ``seconds``, ``accepted``.
    """

    metric: str
    max_drop: float
    drop: float | None
    curve: list[dict[str, Any]]

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "metric": self.metric,
            "max_drop": self.max_drop,
            "drop": self.drop,
            "curve": self.curve,
        }


@dataclass
class Found:
    """The smallest model that was accepted, as plan and factors, and the way there."""

    plan: Plan
    factors: Mapping[str, Factors]
    walk: Walk


def find(
    opened: OpenModel,
    judge: Judge,
    max_drop: float,
    spectra: Sequence[Spectrum],
    *,
    plan_at: Callable[[Fraction], Plan],
    factors_of: Callable[[Plan], Mapping[str, Factors]],
    dense: Manifest,
) -> Found:
    """Try budgets until the smallest with a small enough drop is known to a hundredth.

    Args:
        opened: the dense model; each trial puts factors into its module and takes them out again.
        plan_at: ratio → plan.
        factors_of: plan → factors of every layer that it factorises.
        dense: record of the dense model.

    Raises:
        DropError: even the largest factorised model loses more.
        RequestError: no ratio can be met.
    """
    plans: dict[int, Plan] = {}

    def plan(limit: int) -> Plan:
        if limit not in plans:
            plans[limit] = plan_at(Fraction(limit, _WHOLE))
        return plans[limit]

    def foresee(limit: int) -> tuple[int, float]:
        used, total, kept = plan(limit).used, plan(limit).total, plan(limit).energy
        assert used is not None
        assert total
        assert kept is not None
        return -(-used * _WHOLE // total), 1.0 - kept

    walk = Walk(judge.metric, max_drop, None, [])
    smallest = float("inf")
    ready: Mapping[str, Factors] = {}

    def evaluate(limit: int) -> float:
        nonlocal ready, smallest
        start = time.perf_counter()
        factors = factors_of(plan(limit))
        with replace.replaced(opened.module, factors):
            score = judge.score()
        drop = whole - score
        if drop <= max_drop and foresee(limit)[0] < smallest:
            smallest, ready = foresee(limit)[0], factors
        walk.curve.append(_row(dense, plan(limit), spectra, score, drop, start, max_drop))
        _tell(walk.curve[-1], walk)
        return drop

    least = _least(plan_at)
    start = time.perf_counter()
    whole = judge.score()
    walk.curve.append(_row(dense, None, spectra, whole, 0.0, start, max_drop))
    trials = search.walk(
        evaluate,
        foresee,
        least=least,
        whole=_WHOLE,
        max_drop=max_drop,
        evaluations=EVALUATIONS - 1,
        tolerance=_TOLERANCE,
    )
    best = search.best(trials)
    if best is None:
        raise DropError(_nothing(opened.ref, walk), {"model": opened.ref, **walk.document()})
    walk.drop = best.drop
    return Found(plan(best.limit), ready, walk)


def _least(plan_at: Callable[[Fraction], Plan]) -> int:
    """The smallest ratio that can be met, in ten-thousandths."""
    try:
        plan_at(Fraction(1, _WHOLE))
    except InfeasibleError as error:
        if error.smallest is None or Fraction(error.smallest) == 1:
            raise
        return int(Fraction(error.smallest) * _WHOLE)
    return 1


def _row(
    dense: Manifest,
    plan: Plan | None,
    spectra: Sequence[Spectrum],
    score: float,
    drop: float,
    start: float,
    max_drop: float,
) -> dict[str, Any]:
    record = dense if plan is None else planned_manifest(dense, plan)
    params, flops = record.params, record.flops
    return {
        "asked": None if plan is None else plan.ratio,
        "ratio": params.after / params.before,
        "flops_ratio": None if flops is None else flops.after / flops.before,
        "params": params.after,
        "flops": None if flops is None else flops.after,
        "energy": 1.0 if plan is None else plan.energy,
        "damage": 0.0 if plan is None else sweep.damage(plan, spectra),
        "score": score,
        "drop": drop,
        "seconds": time.perf_counter() - start,
        "accepted": drop <= max_drop,
    }


def _tell(row: Mapping[str, Any], walk: Walk) -> None:
    verdict = "small enough" if row["accepted"] else f"more than {walk.max_drop:g}"
    console.info(
        f"ratio {row['asked']}: {tables.human(row['params'])} parameters, "
        f"{walk.metric} {row['score']:.2f}, drop {row['drop']:.2f}: {verdict}"
    )


def _nothing(ref: str, walk: Walk) -> str:
    tried = walk.curve[1:]
    best = min(tried, key=lambda row: (row["drop"] != row["drop"], row["drop"]))
    return (
        f"{ref}: no factorised model keeps {walk.metric} within {walk.max_drop:g} points of the "
        f"dense model's {walk.curve[0]['score']:.2f}; the best of {len(tried)} has "
        f"{best['ratio']:.4f} of the parameters and drops by {best['drop']:.2f}: "
        "allow more, calibrate on your own samples (--calibrate), "
        "or take a --ratio and heal it (pela pretrain)"
    )
