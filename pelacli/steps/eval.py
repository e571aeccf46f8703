"""Measure a model on a dataset, alone or against the dense one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pelacli import console
from pelacli.artefact import description, loading
from pelacli.data.token_parts import token_parts
from pelacli.errors import RequestError
from pelacli.factorize.batches import samples_in
from pelacli.lowrank import find
from pelacli.manifest import digests, document, evaluations, lookup
from pelacli.manifest.evaluations import EvaluationRecord, Timed
from pelacli.measure import latency
from pelacli.measure.agreement import agreement, in_points
from pelacli.measure.evaluation import EvaluationData, measure, open_data
from pelacli.models import examples, heads
from pelacli.models.opened import OpenModel
from pelacli.models.prediction import predict
from pelacli.recipe.evaluation import Evaluation, NamedModel
from pelacli.steps.latency import side_by_side
from pelacli.system import by_first, devices, memory, processes
from pelacli.system.turns import Timing


@dataclass
class Evaluated:
    """One model's figures.

    Attributes:
        params, bytes, flops: of the whole model; bytes of its weight files, or where it has none
            here, as its parameters are stored; flops of one sample, None where unknown.
        metrics: the task's; empty without labels that fit the model.
        latency_ms: median of one forward pass of a batch; None where it was not timed.
        baseline: the same figures of the model that it is compared with; None without one.
        agreement: of the outputs of both, as `pelacli.measure.agreement.agreement` gives it; empty
            where they can't be compared.
        drop: points that the baseline is ahead; None without one.
        drop_of: the figure that dropped: the main metric; or where there are no labels and there is
            a gate, what of the agreement it holds, "same_class" or "cosine".
        max_drop: the gate it has to pass, if any.
        main_metric: name of the task's main metric; None without labels.
        timed: what the latency holds for; None where it was not timed.
    """

    artefact: str
    params: int
    bytes: int
    flops: int | None
    metrics: dict[str, float]
    latency_ms: float | None = None
    baseline: dict[str, Any] | None = None
    agreement: dict[str, float] | None = None
    drop: float | None = None
    drop_of: str | None = None
    max_drop: float | None = None
    main_metric: str | None = None
    timed: Timed | None = None


def run(request: Evaluation) -> Evaluated:
    """Evaluate a model, and write the figures down beside an artefact's manifest.

    Raises:
        RequestError: a model or the data can't be opened, or ``max_drop`` is given without a
            baseline, or without data to measure the drop on.
    """
    _check(request)
    processes.meet(request.device)
    evaluated, task = _evaluate(request)
    _write_down(request, evaluated, task)
    return evaluated


def _evaluate(request: Evaluation) -> tuple[Evaluated, str | None]:
    """The model's figures, and the name of the task that judged it; None without data."""
    device = devices.select(request.device)
    model = _open(request.model)
    dense = None if request.baseline is None else _open(request.baseline)
    _announce([known for known in (model, dense) if known is not None], device)
    test_data = _test_data(model.opened, request)
    metrics = {} if test_data is None else measure(model.opened, test_data, device)
    comparison = None
    if dense is not None and test_data is not None:
        comparison = _compare(model.opened, dense.opened, test_data, device)
    timed = [model.opened]
    if dense is not None and (comparison is None or comparison.same_task):
        timed.append(dense.opened)
    latencies: list[Timing] = []
    of = None
    if request.latency:  # others at work beside it would make it longer
        timing = partial(_time, timed, test_data, device, whole=request.batch_size is not None)
        latencies, of = by_first.told(timing, request.device)
    task = None if test_data is None else test_data.task_name
    evaluated = Evaluated(
        artefact=request.model.ref,
        params=model.params,
        bytes=model.bytes,
        flops=model.flops,
        metrics=metrics,
        latency_ms=latencies[0].median if latencies else None,
        max_drop=request.max_drop,
        main_metric=None if test_data is None else test_data.main_metric,
        timed=of,
    )
    if dense is None:
        if test_data is not None and not metrics:
            console.warn(f"{request.model.ref}: no figure of the data{_remedy(test_data)}")
        return evaluated, task
    comparison = comparison or _Comparison(same_task=True, metrics={}, agreement={})
    dense_latency = latencies[1].median if len(latencies) > 1 else None
    return _with_baseline(evaluated, dense, comparison, dense_latency), task


def _write_down(request: Evaluation, evaluated: Evaluated, task: str | None) -> None:
    """Record the figures in the artefact, for ``pela report``. A plain model has no record, and
    one that can't be written to keeps none."""
    path = Path(request.model.ref)
    if not document.is_artefact(path) or not processes.is_first():
        return
    data = request.data
    record = EvaluationRecord(
        data=data and data.dataset,
        split=None if data is None else request.split or data.val,
        task=task,
        main_metric=evaluated.main_metric,
        metrics=dict(evaluated.metrics),
        latency_ms=evaluated.latency_ms,
        timed=evaluated.timed,
        baseline=evaluated.baseline,
        agreement=None if evaluated.agreement is None else dict(evaluated.agreement),
        drop=evaluated.drop,
        drop_of=evaluated.drop_of,
        max_drop=evaluated.max_drop,
    )
    try:
        evaluations.append(path, record)
    except OSError as error:
        console.info(f"{path}: the figures are not kept in it ({error.strerror or error})")


def _remedy(data: EvaluationData) -> str:
    """Why there is no figure, and what would give one."""
    if not data.task.LABELLED:
        return "; name a model to compare with (--against)"
    return (
        f", as it has no labels for task {data.task_name!r}; name one that needs none (--task), "
        "or a model to compare with (--against)"
    )


def _check(request: Evaluation) -> None:
    if request.max_drop is None:
        return
    if request.baseline is None:
        raise RequestError("--max-drop needs --against, the model to compare with")
    if request.data is None:
        raise RequestError("--max-drop needs --data, the samples to measure the drop on")


@dataclass(frozen=True)
class _Model:
    """An opened model with its parameters, what they take, and its FLOPs of one sample."""

    ref: str
    opened: OpenModel
    params: int
    bytes: int
    flops: int | None


def _open(named: NamedModel) -> _Model:
    with console.file_progress(f"opening {named.ref}"):
        opened, manifest = loading.open(named.ref, **lookup.how_to_open(named.ref, named.opening))
    if manifest is None:
        layers = find.find_layers(opened.module, head=opened.head)
        manifest = description.describe(opened, layers, description.cost(opened, layers))
    flops = manifest.flops.after if manifest.flops else None
    size = digests.weights_bytes(Path(named.ref)) or opened.bytes
    return _Model(named.ref, opened, manifest.params.after, size, flops)


def _announce(models: Sequence[_Model], device: torch.device) -> None:
    """Of large models, say what memory they take before they are run."""
    parameters = [p for model in models for p in model.opened.module.parameters()]
    weights = sum(p.nbytes for p in parameters)
    free = devices.memory_left(device)
    if weights < memory.LARGE or free is None:
        return
    if device.type == "cpu":
        console.say(
            f"the weights take {memory.text(weights)} of memory; {memory.text(free)} are left for "
            "batches"
        )
    else:
        console.say(
            f"needs {memory.text(weights)} on {device} for the weights, and what a batch takes; "
            f"{memory.text(free)} are free"
        )


def _test_data(opened: OpenModel, request: Evaluation) -> EvaluationData | None:
    if request.data is None:
        return None
    return open_data(
        opened,
        request.data,
        request.task,
        request.task_args,
        split=request.split,
        batch_size=request.batch_size,
        insists=request.task_is_named,
    )


@dataclass(frozen=True)
class _Comparison:
    """A model beside its baseline.

    Attributes:
        same_task: whether the task can judge both models, or neither.
        metrics: of the baseline; empty where its outputs are no answers to the same task.
        agreement: of the outputs of both; empty where they are of different kinds.
    """

    same_task: bool
    metrics: dict[str, float]
    agreement: dict[str, float]


def _compare(
    opened: OpenModel, dense: OpenModel, data: EvaluationData, device: torch.device
) -> _Comparison:
    same_task = data.task.fits(dense) == data.task.fits(opened)
    if not same_task:
        return _Comparison(same_task, {}, {})
    classes = heads.num_classes(opened)
    if heads.num_classes(dense) != classes:
        return _Comparison(same_task, {}, {})
    try:
        metrics = measure(dense, replace(data, task=data.task.without_files()), device)
    except RequestError as error:
        console.warn(f"{dense.ref}: has no figures to compare with: {error}")
        metrics = {}
    with (
        console.progress("comparing outputs", len(data.samples)) as bar,
        data.samples.watched(bar.advance),
    ):
        figures = agreement(
            opened.module.to(device),
            dense.module.to(device),
            token_parts(opened.module, data.samples),
            predict,
            classes=classes is not None,
            device=device,
        )
    return _Comparison(same_task, metrics, figures)


def _with_baseline(
    evaluated: Evaluated, dense: _Model, comparison: _Comparison, latency_ms: float | None
) -> Evaluated:
    main, drop, drop_of = evaluated.main_metric, None, None
    agreed = in_points(comparison.agreement)
    if main and main in comparison.metrics:
        drop, drop_of = comparison.metrics[main] - evaluated.metrics[main], main
    elif main is None and evaluated.max_drop is not None and agreed is not None:
        drop_of, points = agreed
        drop = 100 - points
    baseline = {
        "artefact": dense.ref,
        "params": dense.params,
        "bytes": dense.bytes,
        "flops": dense.flops,
        "metrics": comparison.metrics,
        "latency_ms": latency_ms,
    }
    return replace(
        evaluated,
        baseline=baseline,
        agreement=comparison.agreement,
        drop=drop,
        drop_of=drop_of,
    )


def _time(
    models: Sequence[OpenModel], data: EvaluationData | None, device: torch.device, *, whole: bool
) -> tuple[list[Timing], Timed]:
    """How long a forward pass of each model over one batch takes, and of what batch and where.

    Args:
        whole: whether the batch is one whose size was asked for. Others are cut where they would
            take long.
    """
    batch = examples.example(models[0]) if data is None else next(iter(data.samples))["inputs"]
    modules = [opened.module for opened in models]
    if not whole:
        with console.progress("choosing how many samples are timed"):
            batch = latency.first_samples(modules[0], batch, predict, device=device)
    timings = side_by_side("timing", modules, batch, device)
    threads = torch.get_num_threads()
    return timings, Timed(
        batch_size=samples_in(batch),
        device=device.type,
        model=devices.model_of(device),
        threads=threads,
    )
