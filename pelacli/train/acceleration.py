"""accelerate's Accelerator, from a recipe's settings: device, precision, processes, trackers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, PartialState

if TYPE_CHECKING:
    from pelacli.recipe.training import Train

from pelacli.console import warn_once
from pelacli.errors import RequestError
from pelacli.messages import one_line
from pelacli.recipe import layout
from pelacli.system import devices, precisions, processes


def accelerator(settings: Train, device: str, output: Path | None) -> Accelerator:
    """accelerate's Accelerator for a run.

    Args:
        device: as in a recipe.
        output: the run's folder.

    Raises:
        RequestError: this machine has no such device, precision or tracker.
    """
    precision = computed_in(settings.precision, devices.select(device))
    check_trackers(settings.trackers)
    processes.ignore_leftovers()
    # accelerate keeps one precision and device for a process; a recipe has several steps.
    AcceleratorState._reset_state()
    if PartialState._shared_state and not torch.distributed.is_initialized():
        PartialState._reset_state()
    try:
        accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision=precision.replace("fp32", "no"),
            log_with=settings.trackers or None,
            # Beside the run's own folder, which is removed when its artefact is written.
            project_dir=str(tracking(output)) if output else None,
            # A tap or a loss that is off leaves parameters without gradient, the head's say.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except (ValueError, ImportError) as error:
        raise RequestError(f"precision or trackers cannot be had here: {error}") from None
    kind = accelerator.device.type
    if device not in ("auto", kind):
        raise devices.missing(device, [kind])
    return accelerator


def computed_in(precision: str, device: torch.device) -> str:
    """The precision that is asked for, or float32 where the device does not have it. Weights and
    what is recorded are float32 in both, so a run may go on where there is the other."""
    reason = precisions.obstacle(precision, device)
    if reason is None:
        return precision
    warn_once(f"{precision} on {device}", f"precision = {precision!r}: {reason}: training in fp32")
    return "fp32"


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that accelerate does not know or whose package is missing; it leaves the
    latter out without a word.

    Raises:
        RequestError: the first of them.
    """
    from accelerate.tracking import filter_trackers

    for name in names:
        try:
            if filter_trackers([name], "."):
                continue
        except ValueError as error:
            raise RequestError(f"tracker {name!r}: {one_line(error)}") from None
        if name != "all":
            raise RequestError(
                f"tracker {name!r}: its package is not installed: pip install {name}"
            )


def tracking(output: Path) -> Path:
    """Where trackers keep what they write, as ``runs/vit_base/tracking/pretrain``."""
    return output.parent / "tracking" / output.name.removesuffix(layout.OF_WORKPLACE)
