"""MODEL → module → moments → spectra → plan → low-rank module → artefact."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pelacli import (
    artefact,
    calibrate,
    console,
    correct,
    data,
    engine,
    lowrank,
    manifest,
    models,
    ranks,
    recipe,
    record,
    rundir,
)
from pelacli.errors import RequestError
from pelacli.factorize import Moments
from pelacli.lowrank import Layer
from pelacli.manifest import Manifest, StepRecord
from pelacli.models import OpenModel
from pelacli.ranks import Plan, Spectrum
from pelacli.recipe import Data, Decompose, Recipe

_CALIBRATION_BATCH = 32


@dataclass
class Decomposed:
    """What the step made. ``path`` is None after a dry run, which writes nothing."""

    path: Path | None
    manifest: Manifest
    plan: Plan
    calibrated: bool
    seconds: float


def run(spec: Recipe, source: str, output: Path, *, dry_run: bool = False) -> Decomposed:
    """Factorise a model by the recipe's [decompose] section and write the artefact.

    Args:
        source: what to open: the recipe's model, or the dense artefact that the recipe trained.
        output: directory of the artefact.
        dry_run: stop after the plan.
    """
    start = time.perf_counter()
    section = spec.decompose or Decompose()
    if not dry_run:
        artefact.check_output(output)
    opened, before = artefact.open(source, **rundir.how_to_open(spec, source))
    layers = find(opened, section)
    free = [layer for layer in layers if layer.reason is None]
    spent = record.cost(opened, layers)
    samples = calibration_samples(opened, spec, section) if section.calibrate else []
    moments = measure(opened, free, samples, spec.seed) if samples else {}
    with console.progress("factorising", total=len(free)) as bar:
        cuts = engine.decompositions(
            free, moments, full=bool(section.pin or section.plan), advance=bar.advance
        )
    plan = choose(opened, layers, engine.spectra(free, cuts, moments), section)
    described = record.describe(opened, layers, spent, plan)
    if not dry_run:
        factors = engine.factors(free, cuts, moments, plan)
        if section.correct:
            factors |= corrected(opened, free, plan, moments, samples, section.blend)
        lowrank.replace(opened.module, factors)
        inputs = artefact.input_digest(source, opened)
        described.history = [
            *(before.history if before is not None else []),
            StepRecord(
                step="decompose",
                recipe=recipe.resolved(spec),
                seed=spec.seed,
                versions=manifest.versions(),
                metrics={"energy": plan.energy, "samples": sum(map(_count, samples))},
                seconds=time.perf_counter() - start,
                inputs=inputs,
                fingerprint=recipe.fingerprint(spec, "decompose", inputs),
            ),
        ]
        artefact.save(opened, described, output)
    if not moments:
        console.warn(
            "no calibration samples: ranks and factors come from the weights alone, so expect to "
            "heal; --calibrate with a few hundred samples of your own data does far better"
        )
    seconds = time.perf_counter() - start
    return Decomposed(None if dry_run else output, described, plan, bool(moments), seconds)


def find(opened: OpenModel, section: Decompose) -> list[Layer]:
    """All linear maps of the model, each with the reason why it stays dense, if any."""
    if lowrank.low_rank_layers(opened.module):
        raise RequestError(f"{opened.ref}: is low-rank already; decompose the dense model")
    engine.check_patterns(opened.module, section.include, "--include")
    engine.check_patterns(opened.module, section.exclude, "--exclude")
    layers = lowrank.find_layers(
        opened.module, head=opened.head, include=section.include, exclude=section.exclude
    )
    if not any(layer.reason is None for layer in layers):
        raise RequestError(f"{opened.ref}: has no linear layer that may be factorised")
    return layers


def calibration_samples(opened: OpenModel, spec: Recipe, section: Decompose) -> list[Any]:
    """Batches of unlabelled samples: what the model takes, in an order that the seed shuffles."""
    if section.calibrate == "train":
        assert spec.data is not None  # the recipe's validation has seen to it
        dataset, split, size = spec.data.dataset, spec.data.train, spec.data.image_size
    else:
        assert section.calibrate is not None
        dataset, split, size = section.calibrate, Data.model_fields["train"].default, None
    samples = data.open_dataset(
        dataset, split, inputs=opened.inputs, training=False, image_size=size, unlabelled=True
    )
    batches = data.loader(
        samples,
        batch_size=min(_CALIBRATION_BATCH, section.samples),
        seed=spec.seed,
        shuffle=True,
        limit=section.samples,
    )
    return [batch["inputs"] for batch in batches]


def measure(
    opened: OpenModel, layers: Sequence[Layer], samples: Sequence[Any], seed: int
) -> dict[str, Moments]:
    """The layers' moments over the samples."""
    with console.progress("calibrating", total=sum(map(_count, samples))) as bar:
        moments = calibrate.collect(
            opened.module, layers, samples, models.predict, seed=seed, advance=bar.advance
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
    blend: float,
) -> dict[str, correct.Factors]:
    """Factors refitted front to back to the inputs that the compressed model really gives."""
    with console.progress("correcting", total=len(plan.ranks())) as bar:
        return correct.correct(
            opened.module,
            layers,
            plan.ranks(),
            moments,
            samples,
            models.predict,
            blend=blend,
            advance=bar.advance,
        )


def _count(inputs: Any) -> int:
    return len(inputs if isinstance(inputs, Tensor) else next(iter(inputs.values())))


def choose(
    opened: OpenModel, layers: Sequence[Layer], spectra: Sequence[Spectrum], section: Decompose
) -> Plan:
    """The plan: read from a file where the recipe names one, else chosen by the policy."""
    free = [layer for layer in layers if layer.reason is None]
    fixed = engine.fixed_params(opened.module, free)
    if section.plan is not None:
        plan = read_plan(section.plan)
        ranks.check(plan, {la.name: la.shape for la in layers}, str(section.plan))
        return ranks.measure(plan, spectra, fixed_params=fixed)
    # A threshold needs no budget; one that was asked for all the same has to be met.
    budgeted = section.policy != "threshold" or "ratio" in section.model_fields_set
    return ranks.plan(
        spectra,
        policy=section.policy,
        ratio=recipe.parse_ratio(section.ratio) if budgeted else None,
        scope=section.scope,
        fixed_params=fixed,
        obstacles=record.obstacles(opened.module, layers),
        threshold=section.threshold,
        min_rank=section.min_rank,
        max_rank=section.max_rank,
        multiple=section.multiple,
        pins=engine.pins_by_name(free, section.pin),
    )


def read_plan(file: Path) -> Plan:
    """A plan from a JSON file, also from a manifest's or `--dry-run --json`'s list of layers."""
    try:
        document: Any = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{file}: can't be read: {error.strerror}") from None
    except ValueError as error:
        raise RequestError(f"{file}: not valid JSON ({error})") from None
    return ranks.Plan.from_dict(document, where=str(file))
