"""Plan again from stored spectra: ``pela decompose SPECTRA --ratio 0.4 --dry-run``. No torch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli.errors import RequestError
from pelacli.manifest.document import Manifest
from pelacli.planning import applied, settings, stored
from pelacli.planning.choice import choose
from pelacli.ranks.budget import BUDGETS
from pelacli.ranks.plan import Plan


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
    settings.check_has_budget(section, [key for key in BUDGETS if key != "max_drop"])
    spectra = stored.load(file)
    about = spectra.about
    asked = settings.from_stored(about.section, section, str(file), overrides)
    plan = choose(spectra.layers, about.size, asked)
    manifest = applied.applied(about.dense, plan)
    return Replanned(manifest, plan, about.samples > 0, time.perf_counter() - start)
