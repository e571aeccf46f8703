"""Plan again from stored spectra: ``pela decompose SPECTRA --ratio 0.4 --dry-run``. No torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli.errors import RequestError
from pelacli.manifest.document import Manifest
from pelacli.planning import applied, stored
from pelacli.planning import section as planning_section
from pelacli.planning.stored import Spectra
from pelacli.ranks.plan import Plan
from pelacli.recipe.schema import Decompose


@dataclass
class Replanned:
    """As the decompose step's answer to a dry run. ``path`` is None: nothing is written."""

    manifest: Manifest
    plan: Plan
    calibrated: bool
    seconds: float
    path: None = None
    walk: None = None


def source(ref: str, dry_run: bool) -> Path | None:
    """The stored spectra to plan from, if the user names some for a dry run.

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
) -> Replanned:
    """Plan from stored spectra, otherwise as when they were made.

    Args:
        file: the spectra.
        top, section: flags for the recipe's top level and for [decompose]; None: not given.
        overrides: "decompose.key=value" each.

    Raises:
        RequestError: a flag that needs the weights, no budget, or one that can't be met.
    """
    start = time.perf_counter()
    for key, value in top.items():
        if value is not None:
            raise RequestError(f"--{key} {value}: {file} holds spectra; leave --{key} out")
    if all(section.get(key) is None for key in planning_section.BUDGETS):
        raise RequestError(
            "decompose needs --ratio (how much smaller), --energy, --threshold or --plan"
        )
    spectra = stored.load(file)
    asked = planning_section.settings(spectra.about.section, section, str(file), overrides)
    plan = choose(spectra, asked)
    record = applied.applied(spectra.about.dense, plan)
    calibrated = spectra.about.samples > 0
    return Replanned(record, plan, calibrated, time.perf_counter() - start)


def choose(spectra: Spectra, section: Decompose) -> Plan:
    """The plan that a [decompose] section gives from stored spectra."""
    about = spectra.about
    return planning_section.choose(
        spectra.layers,
        section,
        shapes={layer.name: layer.shape for layer in about.dense.layers},
        fixed_params=about.fixed_params,
        fixed_flops=about.fixed_flops,
        obstacles=about.obstacles,
        flop_obstacles=planning_section.flop_obstacles(about.dense, spectra.layers),
    )
