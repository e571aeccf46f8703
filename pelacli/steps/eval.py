"""Measure a model on a dataset, alone or against the dense one; as a gate with a largest drop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pelacli import console
from pelacli.artefact import description, loading
from pelacli.data.loader import Loader
from pelacli.errors import GateError, RequestError
from pelacli.lowrank import find
from pelacli.manifest.document import Manifest
from pelacli.measure import evaluation, latency
from pelacli.measure.agreement import agreement
from pelacli.measure.evaluation import measure
from pelacli.models import examples, heads
from pelacli.models.opened import OpenModel
from pelacli.models.prediction import predict
from pelacli.recipe.schema import Data
from pelacli.system import devices
from pelacli.tasks.base import Base

_SECONDS = 2.0  # of timing, per model


@dataclass
class Evaluated:
    """One model's figures.

    Attributes:
        drop: points of the task's main metric that the baseline is ahead; None without one.
        max_drop: the gate it has to pass, if any.
    """

    artefact: str
    params: int
    flops: int | None
    metrics: dict[str, float]
    latency_ms: float | None = None
    baseline: dict[str, Any] | None = None
    agreement: dict[str, float] | None = None
    drop: float | None = None
    max_drop: float | None = None
    main: str | None = None


def run(
    ref: str,
    *,
    data: Data | None,
    task: str | None = None,
    task_args: Mapping[str, Any] | None = None,
    against: str | None = None,
    max_drop: float | None = None,
    split: str | None = None,
    batch_size: int | None = None,
    with_latency: bool = True,
    how: dict[str, Any] | None = None,
    how_against: dict[str, Any] | None = None,
    device: str = "auto",
) -> Evaluated:
    """Evaluate a model.

    Args:
        ref: artefact or model; ``how`` are the keyword arguments to open it by.
        data: where the samples come from; None measures size and latency only.
        task: name of the task; None takes image classification where there are labels for it.
        task_args: its settings.
        against: the baseline, usually the dense model.
        max_drop: largest drop that `gate` lets pass; needs ``against``.
    """
    if max_drop is not None and against is None:
        raise RequestError("--max-drop needs --against, the model to compare with")
    place = devices.select(device)
    opened, described = _open(ref, how)
    dense, dense_described = (None, None) if against is None else _open(against, how_against)
    found = Evaluated(
        artefact=ref,
        params=described.params.after,
        flops=described.flops.after if described.flops else None,
        metrics={},
        max_drop=max_drop,
    )
    samples, comparable = None, True
    if data is not None:
        samples, chosen, labelled = evaluation.samples(
            opened, data, task, split, batch_size, task_args
        )
        found.main = chosen.MAIN if labelled else None
        found.metrics = measure(opened, samples, chosen, labelled, place)
        if dense is not None and dense_described is not None:
            comparable = chosen.fits(dense) == chosen.fits(opened)
            same_outputs = heads.num_classes(dense) == heads.num_classes(opened) and comparable
            found.baseline = {
                "artefact": against,
                "params": dense_described.params.after,
                "flops": dense_described.flops.after if dense_described.flops else None,
                "metrics": _baseline(dense, samples, chosen, labelled and same_outputs, place),
                "latency_ms": None,
            }
            found.agreement = _agreement(opened, dense, samples, place) if comparable else {}
            if found.main and found.main in found.baseline["metrics"]:
                found.drop = found.baseline["metrics"][found.main] - found.metrics[found.main]
    elif max_drop is not None:
        raise RequestError("--max-drop needs --data, the samples to measure the drop on")
    if with_latency:
        _time(found, opened, dense if comparable else None, samples, place)
    return found


def gate(results: Sequence[Evaluated]) -> None:
    """Raise `GateError` for the first result that dropped by more than it may."""
    for result in results:
        if result.max_drop is None:
            continue
        if result.drop is None:
            raise RequestError(
                f"{result.artefact}: --max-drop needs a task with a metric, and labels"
            )
        if not result.drop <= result.max_drop:  # no number is no good one
            raise GateError(
                f"{result.artefact}: {result.main} drops by {result.drop:.2f} points, "
                f"more than the {result.max_drop:g} allowed"
            )


def _open(ref: str, how: dict[str, Any] | None) -> tuple[OpenModel, Manifest]:
    opened, described = loading.open(ref, **(how or {}))
    if described is None:
        layers = find.find_layers(opened.module, head=opened.head)
        described = description.describe(opened, layers, description.cost(opened, layers))
    return opened, described


def _baseline(
    dense: OpenModel, samples: Loader, task: Base, labelled: bool, place: torch.device
) -> dict[str, float]:
    """The baseline's figures; empty where it is not (yet) a model for the task."""
    try:
        return measure(dense, samples, task, labelled, place)
    except RequestError as error:
        console.warn(f"{dense.ref}: has no figures to compare with: {error}")
        return {}


def _agreement(
    opened: OpenModel, dense: OpenModel, samples: Loader, place: torch.device
) -> dict[str, float]:
    """Agreement of the outputs; empty where they are of different kinds."""
    if heads.num_classes(opened) != heads.num_classes(dense):
        return {}
    with console.progress("comparing outputs"):
        return agreement(
            opened.module.to(place),
            dense.module.to(place),
            samples,
            predict,
            classes=heads.num_classes(opened) is not None,
            device=place,
        )


def _time(
    found: Evaluated,
    opened: OpenModel,
    dense: OpenModel | None,
    samples: Loader | None,
    place: torch.device,
) -> None:
    batch = examples.example(opened) if samples is None else next(iter(samples))["inputs"]
    modules = [opened.module] + ([dense.module] if dense is not None else [])
    with console.progress("timing"):
        times = latency.side_by_side(modules, batch, predict, seconds=_SECONDS, device=place)
    found.latency_ms = times[0]
    if dense is not None and found.baseline is not None:
        found.baseline["latency_ms"] = times[1]
