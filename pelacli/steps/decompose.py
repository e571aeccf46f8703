"""MODEL → module → moments → spectra → plan → low-rank module → artefact."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from pelacli import console
from pelacli.artefact import description, loading, saving
from pelacli.data import loader
from pelacli.errors import RequestError
from pelacli.factorize import calibration, engine
from pelacli.factorize import refit as factorize_refit
from pelacli.factorize.batches import BATCH_SIZE, join, samples_in
from pelacli.factorize.moments import Moments
from pelacli.lowrank import find as lowrank_find
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.replace import Factors
from pelacli.manifest import lookup, versions
from pelacli.manifest.document import Manifest, StepRecord
from pelacli.measure.evaluation import open_data
from pelacli.measure.flops import Cost
from pelacli.measure.judge import Judge
from pelacli.models import prediction
from pelacli.models.opened import OpenModel
from pelacli.planning import stored as planning_stored
from pelacli.planning.choice import choose
from pelacli.planning.outcome import planned_manifest
from pelacli.planning.size import fixed_flops
from pelacli.planning.stored import About, Spectra
from pelacli.ranks.plan import Plan
from pelacli.ranks.spectrum import Spectrum
from pelacli.recipe.fingerprint import fingerprint
from pelacli.recipe.schema import Decompose
from pelacli.recipe.step import Calibration, Step
from pelacli.steps import quality
from pelacli.steps.quality import Walk
from pelacli.system import devices
from pelacli.tasks import registry


@dataclass
class Decomposed:
    """What the step made.

    Attributes:
        path: None after a dry run, which writes nothing.
        walk: the search for a quality budget, where one was asked for.
    """

    path: Path | None
    manifest: Manifest
    plan: Plan
    calibrated: bool
    seconds: float
    walk: Walk | None = None


def run(step: Step[Decompose], *, dry_run: bool = False, side: Path | None = None) -> Decomposed:
    """Factorise the step's source by its settings and write the artefact.

    Args:
        dry_run: stop after the plan.
        side: file to write the spectra to, beside those in the artefact.
    """
    start = time.perf_counter()
    section = step.settings
    if not dry_run:
        saving.check_output(step.output)
    if side is not None:
        planning_stored.check_target(side)
    opened, before = loading.open(step.source, **lookup.how_to_open(step.source, step.opening))
    layers = find(opened, section)
    spent = description.cost(opened, layers)
    layers = description.with_read_weights_dense(layers, spent)
    free = lowrank_find.free_layers(layers, opened.ref)
    if section.unit == "flops" and spent is None:
        raise RequestError(
            f"{opened.ref}: its FLOPs are unknown, as it can't be run on a plain sample; "
            "budget in parameters (--unit params)"
        )
    judge = None if section.max_drop is None else judge_of(opened, step)
    samples = calibration_samples(opened, step, step.calibration) if step.calibration else []
    moments = measure(opened, free, samples, step.seed) if samples else {}
    with console.progress("reading spectra", total=len(free)) as bar:
        keep = engine.Keep.ALL if section.pin else engine.Keep.PLANNED
        if judge is None and (dry_run or (samples and section.correct is not False)):
            keep = engine.Keep.NOTHING
        cuts = engine.solve(free, moments, keep=keep, advance=bar.advance)
    spectra = description.at_counted_tokens(engine.spectra(free, cuts, moments), spent)
    inputs = loading.input_digest(step.source, opened)
    about = facts(opened, layers, spent, spectra, section, inputs, sum(map(samples_in, samples)))
    stored = Spectra(spectra, about)

    def refit(plan: Plan) -> Mapping[str, Factors]:
        if section.correct is False or not samples:
            return {}
        return corrected(opened, free, plan, moments, samples)

    walk = None
    ready: Mapping[str, Factors] = {}
    if judge is None:
        plan = choose(spectra, about.size, section)
        if not dry_run:
            ready = refit(plan)
    else:
        assert section.max_drop is not None
        found = quality.find(
            opened,
            judge,
            section.max_drop,
            spectra,
            plan_at=lambda ratio: choose(spectra, about.size, at_ratio(section, ratio)),
            factors_of=lambda plan: engine.factors(free, cuts, moments, plan) | dict(refit(plan)),
            dense=about.dense,
        )
        plan, ready, walk = found.plan, found.factors, found.walk
        cuts = {}
    described = planned_manifest(about.dense, plan)
    if not dry_run:
        with console.progress("factorising", total=len(plan.ranks())) as bar:
            engine.apply(
                opened.module,
                free,
                moments,
                plan,
                solutions=cuts,
                refitted=ready,
                advance=bar.advance,
            )
        described.history = [
            *(before.history if before is not None else []),
            StepRecord(
                step="decompose",
                recipe=dict(step.document),
                seed=step.seed,
                versions=versions.versions(),
                metrics={
                    "energy": plan.energy,
                    "samples": about.samples,
                    **(walk.document() if walk is not None else {}),
                },
                seconds=time.perf_counter() - start,
                inputs=inputs,
                fingerprint=fingerprint(step, inputs),
            ),
        ]
        extra = {planning_stored.FILE: planning_stored.dumps(stored)}
        saving.save(opened, described, step.output, extra=extra)
    if side is not None:
        planning_stored.save(stored, side)
    if not moments:
        console.warn(
            "no calibration samples: ranks and factors come from the weights alone, so expect to "
            "heal; --calibrate with a few hundred samples of your own data does far better"
        )
    seconds = time.perf_counter() - start
    path = None if dry_run else step.output
    return Decomposed(path, described, plan, bool(moments), seconds, walk)


def judge_of(opened: OpenModel, step: Step[Decompose]) -> Judge:
    """What the drop is measured by: the section's own samples and task, or the recipe's."""
    assert step.data is not None  # the recipe's validation has seen to it
    # A task that nobody has named fits images alone, so the model decides.
    task = None if step.task.is_default else step.task.name
    data = open_data(opened, step.data, task, step.task.settings, split=step.settings.split)
    return Judge(opened, data, devices.select(step.device))


def at_ratio(section: Decompose, ratio: Fraction) -> Decompose:
    """The section with this ratio in the place of its quality budget."""
    return section.model_copy(update={"ratio": str(ratio), "max_drop": None})


def find(opened: OpenModel, section: Decompose) -> list[Layer]:
    """All linear maps of the model, each with the reason why it stays dense, if any."""
    selection = lowrank_find.Selection(opened.head, section.include, section.exclude)
    return lowrank_find.find_dense(opened.module, selection, opened.ref, flag_prefix="--")


def calibration_samples(opened: OpenModel, step: Step[Decompose], source: Calibration) -> list[Any]:
    """Batches of unlabelled samples: what the model takes, in an order that the seed shuffles."""
    limit, data = step.settings.samples, source.data
    task = registry.get(source.task.name, source.task.settings)
    samples = task.open(data, data.train, inputs=opened.inputs, unlabelled=True)
    batches = loader.loader(
        samples,
        batch_size=min(BATCH_SIZE, limit),
        seed=step.seed,
        shuffle=True,
        limit=limit,
        pinned=False,  # they are for the CPU
    )
    return join(batch["inputs"] for batch in batches)


def measure(
    opened: OpenModel, layers: Sequence[Layer], samples: Sequence[Any], seed: int
) -> dict[str, Moments]:
    """The layers' moments over the samples."""
    with console.progress("calibrating", total=sum(map(samples_in, samples))) as bar:
        moments = calibration.collect(
            opened.module,
            layers,
            samples,
            prediction.predict,
            calibration.Passes(seed=seed),
            advance=bar.advance,
        )
    unseen = [layer.name for layer in layers if layer.name not in moments]
    if unseen:
        console.warn(
            f"{len(unseen)} layers never ran on the calibration samples and keep plain spectra: "
            f"{', '.join(unseen[:3])}"
        )
    return moments


def corrected(
    opened: OpenModel,
    layers: Sequence[Layer],
    plan: Plan,
    moments: Mapping[str, Moments],
    samples: Sequence[Any],
) -> dict[str, Factors]:
    """Factors refitted front to back to the inputs that the compressed model really gives."""
    with console.progress("correcting", total=len(plan.ranks())) as bar:
        return factorize_refit.correct(
            opened.module,
            layers,
            plan.ranks(),
            moments,
            samples,
            prediction.predict,
            advance=bar.advance,
        )


def facts(
    opened: OpenModel,
    layers: Sequence[Layer],
    spent: Cost | None,
    spectra: Sequence[Spectrum],
    section: Decompose,
    inputs: str,
    samples: int,
) -> About:
    """What is stored with the spectra, so that they can be planned from again without the model."""
    free = [layer for layer in layers if layer.reason is None]
    dense = description.describe(opened, layers, spent)
    return About(
        dense=dense,
        inputs=inputs,
        tokens={s.name: s.tokens for s in spectra},
        fixed_params=lowrank_find.fixed_params(opened.module, free),
        fixed_flops=fixed_flops(dense, {s.name for s in spectra}),
        obstacles=description.obstacles(opened.module, layers),
        samples=samples,
        section=section.model_dump(mode="json", exclude_unset=True),
    )
