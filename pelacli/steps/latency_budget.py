"""Time as what a budget counts: the dense model and its layers are timed before the plan, and the
low-rank model beside the dense one after it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pelacli import console
from pelacli.measure import layer_times_cache, model_times
from pelacli.measure.model_times import ModelTimes
from pelacli.messages import naming
from pelacli.models.opened import OpenModel
from pelacli.ranks import forms
from pelacli.ranks.plan import Plan
from pelacli.ranks.spectrum import Spectrum
from pelacli.recipe.decompose import Decompose, Latency
from pelacli.recipe.step import Step
from pelacli.report.latencies import Conditions, Speeds, TimingRequest
from pelacli.steps.dense import DenseModel
from pelacli.steps.latency import own_precision, time_model

_NEAR = 1.1  # a prediction within a tenth is left without comment


@dataclass(frozen=True)
class LatencyOutcome:
    """Milliseconds of one forward pass of a batch.

    Attributes:
        dense: of the dense model, in turns with the low-rank one; timed alone after a dry run.
        predicted: of the low-rank model, by the times of single layers.
        planned_dense: the same of the dense model: what the plan's ratio is of.
        measured: of the whole low-rank model; None after a dry run.
    """

    dense: float
    predicted: float
    planned_dense: float
    measured: float | None
    batch_size: int
    conditions: Conditions

    def document(self) -> dict[str, Any]:
        """As JSON and the manifest have it, under ``latency_ms``."""
        return {
            "dense": self.dense,
            "predicted": self.predicted,
            "planned_dense": self.planned_dense,
            "measured": self.measured,
            "batch_size": self.batch_size,
            **self.conditions.document(),
        }

    def __str__(self) -> str:
        planned = self.predicted / self.planned_dense
        line = f"a batch of {self.batch_size} {self.conditions}: predicted {self.predicted:.4g} ms"
        line += f" ({planned:.2f} of dense)"
        if self.measured is None:
            return line
        real = self.measured / self.dense
        line += f", measured {self.measured:.4g} ms ({real:.2f} of dense, {self.dense:.4g} ms)"
        if real > 1:
            return line + (
                "; it is slower than dense here: plan on a quiet machine, or for a larger batch "
                "(--batch-size)"
            )
        off = max(real, planned) > _NEAR * min(real, planned)
        return f"{line}; the prediction is off by more than a tenth" if off else line


def counts_time(settings: Decompose) -> bool:
    """Whether the settings' budget counts time."""
    return settings.plan is None and settings.counted[0] == "latency"


def timed(dense: DenseModel, step: Step[Decompose]) -> DenseModel:
    """The dense model with its times on the step's device.

    Raises:
        RequestError: it can't be run there.
    """
    assert dense.cost is not None  # `pelacli.steps.dense.check_flops_known` has seen to it
    request = _request(dense.opened, step)
    forms_to_time = _forms(step)
    speeds = _time_copy(dense.opened, request)
    [size] = request.batch_sizes
    cases = [model_times.case_of(layer, dense.cost, size) for layer in dense.free]
    different = {case for case in cases if case is not None}
    with (
        naming(f"{dense.ref}: its layers can't be timed {speeds.conditions}", "change --precision"),
        console.progress("timing layers", len(different)) as bar,
    ):
        known = layer_times_cache.times(
            sorted(different, key=str), forms_to_time, speeds.conditions, advance=bar.advance
        )
    tables = model_times.tables(dense.free, dense.cost, size, known, speeds.conditions.device)
    whole = round(1e6 * speeds.batches[0].own.median)
    return replace(dense, times=ModelTimes(speeds.conditions, size, whole, tables))


def outcome(
    dense: DenseModel, plan: Plan, spectra: Sequence[Spectrum], low_rank: OpenModel | None
) -> LatencyOutcome:
    """What the plan comes to.

    Args:
        dense: as `timed` gives it.
        low_rank: the model after the plan, which is timed; None after a dry run.
    """
    times = dense.times
    assert times is not None
    predicted, planned_dense = times.predicted(plan, spectra) / 1e6, times.planned_dense / 1e6
    size, how = times.batch_size, times.conditions
    if low_rank is None:
        return LatencyOutcome(times.dense / 1e6, predicted, planned_dense, None, size, how)
    request = TimingRequest(how.device, (size,), how.precision, how.compile)
    [speed] = _time_copy(low_rank, request).batches
    beside = speed.own if speed.dense is None else speed.dense
    return LatencyOutcome(beside.median, predicted, planned_dense, speed.own.median, size, how)


def _request(opened: OpenModel, step: Step[Decompose]) -> TimingRequest:
    asked = step.settings.latency or Latency()
    precision = asked.precision or own_precision(opened)
    return TimingRequest(step.device, (asked.batch_size,), precision, asked.compile)


def _forms(step: Step[Decompose]) -> Sequence[str]:
    """The forms that the plan may take."""
    return forms.FORMS if step.settings.form == "auto" else (step.settings.form,)


def _time_copy(opened: OpenModel, request: TimingRequest) -> Speeds:
    """Time a copy, as timing changes precision and device."""
    return time_model(replace(opened, module=copy.deepcopy(opened.module)), request)
