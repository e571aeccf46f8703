"""A dry run of stored spectra, ``pela decompose SPECTRA --ratio 0.4 --dry-run``. No torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli.errors import RequestError
from pelacli.manifest.document import Manifest
from pelacli.planning import settings, stored
from pelacli.planning.choice import choose
from pelacli.planning.outcome import planned_manifest
from pelacli.planning.stored import About
from pelacli.ranks.budgets import registry
from pelacli.ranks.plan import Plan


@dataclass
class DryRun:
    """What a dry run gives, with the attributes that the decompose step's result has.

    Attributes:
        manifest: what the plan would make of the model.
        about: the spectra: what they were calibrated on and by.
        path: None, as nothing is written; search: None, as no ratio is searched for; fit: None, as
            no layer is made; latency: None, as nothing is timed.
    """

    manifest: Manifest
    plan: Plan
    about: About
    seconds: float
    path: None = None
    search: None = None
    fit: None = None
    latency: None = None


def spectra_file(ref: str, dry_run: bool) -> Path | None:
    """The stored spectra that the user wants a plan from; None where a model is meant.

    Args:
        ref: what the user names: a model, an artefact, or a file of spectra.

    Raises:
        RequestError: a file of spectra is named and more than a plan is wanted.
    """
    file = stored.find(ref)
    if dry_run or file is None:
        return file
    if file == Path(ref):
        raise RequestError(
            f"{ref}: holds spectra, no weights; plan with --dry-run --json, then "
            "pela decompose MODEL --plan FILE"
        )
    return None


def run(
    file: Path, top: Mapping[str, Any], section: Mapping[str, Any], overrides: Sequence[str]
) -> DryRun:
    """Plan from stored spectra, with the settings that they were made with but for the flags.

    Args:
        file: the spectra.
        top, section: flags for the recipe's top level and for [decompose]; None was not given.
        overrides: "decompose.key=value" each.

    Raises:
        RequestError: a flag that needs the weights, no budget, or one that can't be met.
    """
    start = time.perf_counter()
    for key, value in top.items():
        if value is not None:
            raise RequestError(f"--{key} {value}: {file} holds spectra; leave --{key} out")
    settings.check_has_budget(section, overrides, left_out=registry.searched())
    spectra = stored.load(file)
    about = spectra.about
    plan = choose(
        spectra.layers,
        about.size,
        settings.from_stored(about.section, section, str(file), overrides),
    )
    manifest = planned_manifest(about.dense, plan)
    return DryRun(manifest, plan, about, seconds=time.perf_counter() - start)
