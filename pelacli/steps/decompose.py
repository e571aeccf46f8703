"""MODEL → module → moments → spectra → plan → low-rank module → artefact."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pelacli import console
from pelacli.artefact import description, loading, saving
from pelacli.data import in_memory, loader
from pelacli.errors import RequestError
from pelacli.factorize.batches import BATCH_SIZE, with_held_back
from pelacli.factorize.engine import Keep
from pelacli.lowrank.find import Selection
from pelacli.manifest import lookup, versions
from pelacli.manifest.document import Manifest, StepRecord
from pelacli.measure.evaluation import open_data
from pelacli.measure.judge import Judge
from pelacli.models import precision
from pelacli.models.opened import OpenModel
from pelacli.planning import stored as planning_stored
from pelacli.planning.choice import choose
from pelacli.planning.outcome import add_held_back_errors, planned_manifest
from pelacli.planning.stored import About, Spectra
from pelacli.ranks.plan import Plan
from pelacli.recipe import layout
from pelacli.recipe.decompose import Decompose
from pelacli.recipe.fingerprint import fingerprint
from pelacli.recipe.step import Step
from pelacli.steps import fit_quality, latency_budget, outputs, placing, quality
from pelacli.steps.blockwise import Choice, kept_until_done
from pelacli.steps.dense import DenseModel, check_flops_known, examine
from pelacli.steps.factorization import solve
from pelacli.steps.latency_budget import LatencyOutcome
from pelacli.steps.quality import Candidate, QualitySearch
from pelacli.steps.solved import Fit, SolvedModel
from pelacli.system import devices, machine, processes
from pelacli.tasks import registry


@dataclass
class Decomposed:
    """What the step made.

    Attributes:
        path: None after a dry run, which writes nothing.
        about: the spectra it was planned from: what they were calibrated on and by.
        search: for the smallest model within a quality budget, where one was asked for.
        fit: how far the model is from the dense one on held-back samples; None without calibration
            and after a dry run.
        latency: predicted and measured, where the budget counts time; else None.
    """

    path: Path | None
    manifest: Manifest
    plan: Plan
    about: About
    seconds: float
    search: QualitySearch | None = None
    fit: Fit | None = None
    latency: LatencyOutcome | None = None


def run(
    step: Step[Decompose], *, dry_run: bool = False, spectra_file: Path | None = None
) -> Decomposed:
    """Factorise the step's source by its settings and write the artefact.

    Args:
        dry_run: stop after the plan.
        spectra_file: file to write the spectra to, beside those in the artefact.
    """
    check_targets(step, dry_run, spectra_file)
    processes.meet(step.device)
    if dry_run:
        return _run(step, dry_run, spectra_file)
    with outputs.writing(step.output), kept_until_done(layout.moments_folder(step.output)):
        return _run(step, dry_run, spectra_file)


def shares_samples(step: Step[Decompose]) -> bool:
    """Whether processes that a launcher started share out the calibration samples. Else the first
    one works alone: where there are none, where blocks go one after the other, and where what is
    measured decides, as points that are lost, or times, which work beside them would change."""
    settings = step.settings
    measures = settings.max_drop is not None or latency_budget.counts_time(settings)
    return step.calibration is not None and not settings.blockwise and not measures


def _run(step: Step[Decompose], dry_run: bool, spectra_file: Path | None) -> Decomposed:
    start = time.perf_counter()
    opened, before = open_source(step)
    dense = dense_model(opened, step.settings)
    if latency_budget.counts_time(step.settings):
        dense = latency_budget.timed(dense, step)
    judge = None if step.settings.max_drop is None else judge_of(opened, step)
    devices_used = placing.choose(opened, step)
    batches = devices.move_batch(calibration_batches(opened, step), devices_used.model)
    inputs = loading.input_digest(step.source, opened)
    with placing.ready(opened, devices_used.model, calibrated=step.calibration is not None):
        solved = solved_model(dense, inputs, batches, step, dry_run, devices_used.blocks)
        spectra = storable(solved, inputs, step)
        candidate = chosen(solved, step.settings, judge, dry_run)
        if not dry_run and opened.weights is None:
            solved.apply(candidate.plan, candidate.fit)
    if not dry_run and opened.weights is not None:  # nothing of it is filled any more
        solved.apply(candidate.plan, candidate.fit)
    if solved.sample_tokens is not None:
        console.info(f"calibrated on {solved.samples} samples, {solved.sample_tokens:,} tokens")
    latency = timed_beside(solved, candidate.plan, None if dry_run else opened)
    result = Decomposed(
        path=None if dry_run else step.output,
        manifest=manifest_of(spectra, candidate),
        plan=candidate.plan,
        about=spectra.about,
        seconds=time.perf_counter() - start,
        search=candidate.search,
        fit=candidate.fit,
        latency=latency,
    )
    if not dry_run:
        earlier = [] if before is None else before.history
        result.manifest.history = [*earlier, record(step, result, devices_used.model)]
        write(step.output, opened, result.manifest, spectra)
        result.seconds = time.perf_counter() - start
    if spectra_file is not None and processes.is_first():
        planning_stored.save(spectra, spectra_file)
    fit_quality.warn(solved, candidate.fit)
    return result


def open_source(step: Step[Decompose]) -> tuple[OpenModel, Manifest | None]:
    """(the model, its manifest where it is an artefact). What is large for the memory stays in its
    files."""
    how = lookup.how_to_open(step.source, step.opening)
    with console.file_progress(f"opening {step.source}"):
        opened, manifest = loading.open(step.source, lazy_above=placing.lazy_above(step), **how)
    if opened.weights is not None:
        unit = "layer" if step.calibration is None else "block"
        console.warn(f"{step.source}: large for the memory that is free, so read {unit} by {unit}")
    if step.calibration is not None:
        precision.in_float32(opened)
    return opened, manifest


def check_targets(step: Step[Decompose], dry_run: bool, spectra_file: Path | None) -> None:
    """Refuse what can't be written to, before any work is done."""
    if not dry_run:
        saving.check_output(step.output, step.source)
    if spectra_file is not None:
        planning_stored.check_target(spectra_file)
        if not dry_run and spectra_file.resolve() == step.output.resolve():
            raise RequestError(
                f"{spectra_file}: is the artefact's directory too; name another file"
            )


def dense_model(opened: OpenModel, settings: Decompose) -> DenseModel:
    """The opened model with its layers, those that the settings exclude among them."""
    selection = Selection(opened.head, settings.include, settings.exclude)
    dense = examine(opened.module, selection, opened.ref, opened, flag_prefix="--")
    check_flops_known(
        dense,
        settings.counted[0],
        ", as it can't be run on a plain sample; budget in parameters (--unit params)",
    )
    return dense


def judge_of(opened: OpenModel, step: Step[Decompose]) -> Judge:
    """What the drop is measured by: the section's own samples and task, or the recipe's."""
    assert step.data is not None  # the recipe's validation has seen to it
    # A task that nobody has named fits images alone, so the model decides.
    task = None if step.task.is_default else step.task.name
    data = open_data(opened, step.data, task, step.task.settings, split=step.settings.split)
    return Judge(opened, data, devices.select(step.device))


def calibration_batches(opened: OpenModel, step: Step[Decompose]) -> list[Any]:
    """Batches of unlabelled samples: what the model takes, in an order that the seed shuffles, with
    some more than are fitted to, to be held back. None where the step calibrates on nothing."""
    source = step.calibration
    if source is None:
        return []
    limit = with_held_back(step.settings.samples)
    task = registry.get(source.task.name, source.task.settings)
    samples = task.open(source.data, source.data.train, inputs=opened.inputs, unlabelled=True)
    with processes.alone():  # all read the same ones, and `solve` shares them out
        batches = loader.loader(
            samples,
            batch_size=min(BATCH_SIZE, limit),
            seed=step.seed,
            shuffle=True,
            limit=limit,
            pinned=False,  # they are moved once
            skips_bad=source.data.skips_bad,
        )
        with (
            console.progress("reading calibration samples", len(batches)) as bar,
            batches.watched(bar.advance),
        ):
            return [batch["inputs"] for batch in batches]


def solved_model(
    dense: DenseModel,
    inputs: str,
    batches: list[Any],
    step: Step[Decompose],
    dry_run: bool,
    block_device: torch.device | None = None,
) -> SolvedModel:
    """The model calibrated, and each layer's spectrum with what its factors will need."""
    settings = step.settings
    correct = settings.correct is not False
    keep = Keep.PLANNED if settings.form == "factors" and not settings.pin else Keep.ALL
    if settings.max_drop is None and dry_run:  # a plan is all that is wanted
        keep = Keep.NOTHING
    run = in_memory.predicting(dense.ref, dense.module, "calibration")
    folder = None if dry_run else layout.moments_folder(step.output)
    choice = Choice(settings.blockwise, folder, inputs, block_device)
    return solve(dense, batches, keep, correct=correct, seed=step.seed, run=run, choice=choice)


def storable(solved: SolvedModel, inputs: str, step: Step[Decompose]) -> Spectra:
    """The spectra with all that a plan needs to know, so that they can be planned from again
    without the model."""
    dense, size = solved.dense, solved.dense.size
    assert dense.opened is not None
    about = About(
        dense=description.describe(dense.opened, dense.layers, dense.cost),
        inputs=inputs,
        tokens={spectrum.name: spectrum.tokens for spectrum in solved.spectra},
        fixed_params=size.fixed_params,
        fixed_flops=size.fixed_flops,
        obstacles=dict(size.obstacles),
        samples=solved.samples,
        sample_tokens=solved.sample_tokens,
        sensitivity=solved.sensitivity,
        scales=dict(solved.scales),
        section=step.settings.model_dump(mode="json", exclude_unset=True),
    )
    return Spectra(solved.spectra, about)


def chosen(
    solved: SolvedModel, settings: Decompose, judge: Judge | None, dry_run: bool
) -> Candidate:
    """The plan with its layers: the smallest model that the judge lets pass, or without a judge
    what the settings ask for. Layers that no sample is needed for are made one by one later."""
    if judge is not None:
        return quality.smallest(solved, settings, judge)
    plan = choose(solved.spectra, solved.dense.size, settings, solved.dense.tables)
    fit = solved.fit(plan) if solved.batches and not dry_run else None
    return Candidate(plan, fit)


def timed_beside(
    solved: SolvedModel, plan: Plan, low_rank: OpenModel | None
) -> LatencyOutcome | None:
    """The times that the plan predicts, and those of the low-rank model where there is one; None
    where the budget counts something else."""
    if solved.dense.times is None:
        return None
    outcome = latency_budget.outcome(solved.dense, plan, solved.spectra, low_rank)
    console.warn(str(outcome))
    return outcome


def manifest_of(spectra: Spectra, candidate: Candidate) -> Manifest:
    """The manifest of what the plan makes of the model, without its history."""
    manifest = planned_manifest(spectra.about.dense, candidate.plan)
    if candidate.fit is not None:
        add_held_back_errors(manifest, candidate.fit.layer_errors)
    return manifest


def record(step: Step[Decompose], result: Decomposed, device: torch.device) -> StepRecord:
    """What the manifest's history says of the step."""
    about = result.about
    metrics: dict[str, Any] = {
        "energy": result.plan.energy,
        "samples": about.samples,
        "sensitivity": about.sensitivity,
    }
    if about.sample_tokens is not None:
        metrics["tokens"] = about.sample_tokens
    if result.fit is not None:
        metrics |= result.fit.document()
    if result.search is not None:
        metrics |= result.search.document()
    if result.latency is not None:
        metrics["latency_ms"] = result.latency.document()
    return StepRecord(
        step="decompose",
        recipe=dict(step.document),
        seed=step.seed,
        versions=versions.versions(),
        machine=machine.description(device),
        metrics=metrics,
        seconds=result.seconds,
        inputs=about.inputs,
        fingerprint=fingerprint(step, about.inputs),
    )


def write(output: Path, opened: OpenModel, manifest: Manifest, spectra: Spectra) -> None:
    """Write the artefact, with the spectra in it; of several processes the first does."""
    if processes.is_first():
        with console.file_progress(f"writing {output}"):
            extra = {planning_stored.FILE: planning_stored.dumps(spectra)}
            saving.save(opened, manifest, output, extra=extra)
