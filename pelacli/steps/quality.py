"""A quality budget: the smallest model that loses few enough points, found with no training."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pelacli import console
from pelacli.artefact import description
from pelacli.errors import DropError, InfeasibleError
from pelacli.lowrank import replace
from pelacli.measure.judge import Judge
from pelacli.planning import sweep
from pelacli.planning.choice import choose
from pelacli.planning.outcome import planned_manifest
from pelacli.ranks import search
from pelacli.ranks.plan import Plan
from pelacli.recipe.decompose import Decompose
from pelacli.report import tables
from pelacli.steps.solved import Fit, SolvedModel

EVALUATIONS = 8  # the dense model's included
_WHOLE = 10_000  # ratios of four digits, which --ratio can repeat
_TOLERANCE = 100


@dataclass
class QualitySearch:
    """What was asked for, and what was tried.

    Attributes:
        metric: name of the figure in points; max_drop: how many of them may be lost.
        drop: of the smallest model that was accepted; None where there is none.
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


@dataclass(frozen=True)
class Candidate:
    """A model to be: its plan, its layers where they are known already, and how it was searched
    for."""

    plan: Plan
    fit: Fit | None
    search: QualitySearch | None = None


def smallest(solved: SolvedModel, settings: Decompose, judge: Judge) -> Candidate:
    """Try ratios until the smallest with a small enough drop is known to a hundredth.

    Args:
        solved: the dense model; each trial puts factors into its module and takes them out again.
        settings: with max_drop.

    Raises:
        DropError: even the largest factorised model loses more.
        RequestError: no ratio can be met.
    """
    trials = _Trials(solved, settings, judge)
    least = trials.least_ratio()
    trials.measure_dense()
    best = search.best(
        search.walk(
            trials.drop_at,
            trials.foresee,
            least=least,
            whole=_WHOLE,
            max_drop=trials.max_drop,
            evaluations=EVALUATIONS - 1,
            tolerance=_TOLERANCE,
        )
    )
    record = QualitySearch(
        judge.metric, trials.max_drop, None if best is None else best.drop, trials.curve
    )
    if best is None:
        ref = solved.dense.ref
        raise DropError(_no_model(ref, record), {"model": ref, **record.document()})
    return Candidate(trials.plan_at(best.limit), trials.best_fit, record)


class _Trials:
    """Models at different ratios, each planned, put together and measured.

    Attributes:
        curve: a row per model that was measured, as in `QualitySearch`.
        best_fit: of the smallest model so far that lost little enough. Only these are kept, as
            they are about as large as the model.

    Ratios are whole ten-thousandths here, as `pelacli.ranks.search` wants them.
    """

    def __init__(self, solved: SolvedModel, settings: Decompose, judge: Judge) -> None:
        assert settings.max_drop is not None
        self.max_drop = settings.max_drop
        self.curve: list[dict[str, Any]] = []
        self.best_fit: Fit | None = None
        self._best_cost = math.inf
        self._solved, self._settings, self._judge = solved, settings, judge
        dense = solved.dense
        assert dense.opened is not None
        self._size = dense.size
        self._manifest = description.describe(dense.opened, dense.layers, dense.cost)
        self._plans: dict[int, Plan] = {}

    def least_ratio(self) -> int:
        """The smallest ratio that can be met."""
        try:
            self._plan(Fraction(1, _WHOLE))
        except InfeasibleError as error:
            if error.smallest is None or Fraction(error.smallest) == 1:
                raise
            return int(Fraction(error.smallest) * _WHOLE)
        return 1

    def plan_at(self, ratio: int) -> Plan:
        """The plan for a ratio."""
        if ratio not in self._plans:
            self._plans[ratio] = self._plan(Fraction(ratio, _WHOLE))
        return self._plans[ratio]

    def foresee(self, ratio: int) -> tuple[int, float]:
        """(the ratio that the plan really has, the share of energy that it loses)."""
        plan = self.plan_at(ratio)
        assert plan.used is not None
        assert plan.total
        assert plan.energy is not None
        return -(-plan.used * _WHOLE // plan.total), 1.0 - plan.energy

    def measure_dense(self) -> None:
        """Measure the dense model, which all others are compared with."""
        start = time.perf_counter()
        self._add_row(None, self._judge.score(), start)

    def drop_at(self, ratio: int) -> float:
        """How many points the model of this ratio loses."""
        start = time.perf_counter()
        plan = self.plan_at(ratio)
        fit = self._solved.fit(plan)
        with replace.replaced(self._solved.dense.module, fit.factors):
            score = self._judge.score()
        row = self._add_row(plan, score, start)
        cost = self.foresee(ratio)[0]
        if row["accepted"] and cost < self._best_cost:
            self._best_cost, self.best_fit = cost, fit
        verdict = "small enough" if row["accepted"] else f"more than {self.max_drop:g}"
        console.info(
            f"ratio {row['asked']}: {tables.human(row['params'])} parameters, "
            f"{self._judge.metric} {score:.2f}, drop {row['drop']:.2f}: {verdict}"
        )
        return float(row["drop"])

    def _plan(self, ratio: Fraction) -> Plan:
        at_ratio = self._settings.model_copy(update={"ratio": str(ratio), "max_drop": None})
        return choose(self._solved.spectra, self._size, at_ratio, self._solved.dense.tables)

    def _add_row(self, plan: Plan | None, score: float, start: float) -> dict[str, Any]:
        manifest = self._manifest if plan is None else planned_manifest(self._manifest, plan)
        params, flops = manifest.params, manifest.flops
        drop = 0.0 if plan is None else self.curve[0]["score"] - score
        damage = 0.0 if plan is None else sweep.damage(plan, self._solved.spectra)
        row = {
            "asked": None if plan is None else plan.ratio,
            "ratio": params.after / params.before,
            "flops_ratio": None if flops is None else flops.after / flops.before,
            "params": params.after,
            "flops": None if flops is None else flops.after,
            "energy": 1.0 if plan is None else plan.energy,
            "damage": damage,
            "score": score,
            "drop": drop,
            "seconds": time.perf_counter() - start,
            "accepted": drop <= self.max_drop,
        }
        self.curve.append(row)
        return row


def _no_model(ref: str, search: QualitySearch) -> str:
    tried = search.curve[1:]
    best = min(tried, key=lambda row: (row["drop"] != row["drop"], row["drop"]))
    return (
        f"{ref}: no factorised model keeps {search.metric} within {search.max_drop:g} points of "
        f"the dense model's {search.curve[0]['score']:.2f}; the best of {len(tried)} has "
        f"{best['ratio']:.4f} of the parameters and drops by {best['drop']:.2f}: "
        "allow more, calibrate on your own samples (--calibrate), "
        "or take a --ratio and heal it (pela heal)"
    )
