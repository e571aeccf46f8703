"""Checkpoints of a training run: ``checkpoints/step-00000120`` in its folder.

A checkpoint is a directory: model.safetensors, ema.safetensors where there is an average,
optimizer.pt (tensors and numbers only: it is loaded with ``weights_only``) and state.json. It is
written under a hidden name and then renamed, so that it is complete whenever a run is killed. What
else a run needs to go on (random numbers, the position in the data, the learning rate) follows from
the step and the seed; see `pelacli.train.loop`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from pelacli.console import info, warn
from pelacli.errors import PelaError, RequestError
from pelacli.system import files, leftovers
from pelacli.train.run import Run

# Raised by torch, safetensors and the file system for a file that is cut short or of other shapes.
_UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError)


class NotFiniteError(PelaError):
    """A loss or a weight became infinite or NaN."""


def begin(
    run: Run, output: Path, modules: Mapping[str, nn.Module], *, resume: bool, main: bool = True
) -> dict[str, Any] | None:
    """Put a run where its newest checkpoint is, or remove what a run before it has left.

    Args:
        resume: go on from the newest checkpoint, if there is one.
        main: whether this process may remove files.

    Returns:
        The optimizer's states, None for a fresh run.

    Raises:
        RequestError: an unfinished run would be overwritten, or continued with other data or seed.
        PelaError: there are checkpoints, and none can be read.
    """
    if not resume:
        for path in steps(output)[-1:]:
            old = state(path)
            if old["step"] < old["total"]:
                raise RequestError(
                    f"{output} holds a run that stopped at step {old['step']} of {old['total']}: "
                    "continue it with --resume, or remove the folder"
                )
        if main:
            clear(output)
        return None
    newest = load_newest(output, modules)
    if newest is None:
        return None
    old, states = newest
    for name in ("seed", "batches", "accumulate"):
        if old[name] != getattr(run, name):
            raise RequestError(
                f"{output}: the run was started with {name} {old[name]}, not {getattr(run, name)}: "
                "it cannot be continued so"
            )
    for name in ("step", "evaluated", "metrics", "start", "best"):
        setattr(run, name, old[name])
    if main:
        _drop_later_bests(output, run.step)
    info(f"continuing at step {run.step} of {run.total}")
    return states


def _drop_later_bests(output: Path, step: int) -> None:
    """Remove weights that an evaluation after this step has kept: it will be made again, and may
    not keep them."""
    for path in folder(output).glob("best-*"):
        if path.name > f"best-{step:08d}":
            leftovers.discard(path)


def folder(output: Path) -> Path:
    """Where a run's checkpoints are."""
    return output / "checkpoints"


def steps(output: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(p for p in folder(output).glob("step-*") if (p / "state.json").is_file())


def state(path: Path) -> dict[str, Any]:
    """A checkpoint's numbers: the fields of `Run`."""
    try:
        return dict(json.loads((path / "state.json").read_text()))
    except _UNREADABLE as error:
        raise PelaError(f"{path}: not a readable checkpoint ({error}): remove it") from None


def save(
    output: Path,
    kind: str,
    run: Run,
    modules: Mapping[str, nn.Module],
    states: Mapping[str, Any] | None = None,
) -> Path:
    """Write one checkpoint. Whenever a run is killed, there is the whole of it or none.

    Where this step has been saved before, its weights are the same, and only its numbers change.

    Args:
        kind: "step" or "best".
        modules: file stem → module, "model" and perhaps "ema".
        states: the optimizer's, None where the checkpoint is not to be continued from.

    Raises:
        PelaError: it cannot be written (a full disk, say). Older checkpoints stay.
    """
    path = folder(output) / f"{kind}-{run.step:08d}"
    draft = path.with_name(f".{path.name}")
    try:
        numbers = json.dumps(vars(run), indent=2).encode()
        if path.is_dir():
            files.write(path / "state.json", numbers)
            return path
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        (draft / "state.json").write_bytes(numbers)
        for stem, module in modules.items():
            save_model(module, str(draft / f"{stem}.safetensors"))
        if states is not None:
            torch.save(dict(states), draft / "optimizer.pt")
        os.replace(draft, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise PelaError(f"{path}: the checkpoint cannot be written ({error})") from None
    return path


def load(path: Path, modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Fill the modules from a checkpoint, strictly; return the optimizer's states.

    Raises:
        PelaError: a file is missing, cut short, or of another model.
    """
    _fill(path, modules)
    try:
        states = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise PelaError(f"{path}: cannot be continued from ({error})") from None
    return dict(states)


def load_newest(
    output: Path, modules: Mapping[str, nn.Module]
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(state, optimizer's states) of a run's newest checkpoint that is not damaged. None where the
    run has no checkpoint yet.

    Raises:
        PelaError: there are checkpoints, and none can be read.
    """
    failure = None
    for path in reversed(steps(output)):
        try:
            return state(path), load(path, modules)
        except PelaError as error:
            warn(str(error))
            failure = failure or error
    if failure:
        raise failure
    return None


def load_best(output: Path, run: Run, module: nn.Module) -> dict[str, float] | None:
    """Fill a module with the weights of the run's best evaluation; return its metrics. None where
    there was no evaluation with a main metric.

    Raises:
        PelaError: the file is missing, cut short, or of another model.
    """
    if run.best is None:
        return None
    path = folder(output) / f"best-{run.best['step']:08d}"
    metrics: dict[str, float] = state(path)["metrics"]
    _fill(path, {"model": module})
    return metrics


def _fill(path: Path, modules: Mapping[str, nn.Module]) -> None:
    try:
        for stem, module in modules.items():
            load_model(module, str(path / f"{stem}.safetensors"), strict=True)
    except _UNREADABLE as error:
        raise PelaError(f"{path}: cannot be continued from ({error})") from None


def prune(output: Path, keep: int) -> None:
    """Leave the newest ``keep`` steps, the best, and no drafts."""
    checkpoints = folder(output)
    kept = steps(output)[-max(keep, 1) :]
    # Also a folder that is no checkpoint any more: a run may be killed while it removes one.
    old = [path for path in checkpoints.glob("step-*") if path not in kept]
    old_best = sorted(checkpoints.glob("best-*"))[:-1]
    for path in [*old, *old_best, *checkpoints.glob(".*")]:
        shutil.rmtree(path, ignore_errors=True)


def clear(output: Path) -> None:
    """Remove all checkpoints of a run, as when its artefact has been saved."""
    leftovers.clear(folder(output))
    leftovers.discard(folder(output))


def check_finite(module: nn.Module, step: int, output: Path) -> None:
    """Finite losses can still leave infinite weights behind, which no checkpoint may hold.

    Raises:
        PelaError: a weight is infinite or NaN.
    """
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise not_finite(step, {name: math.nan}, output)


def not_finite(step: int, figures: Mapping[str, float], output: Path | None) -> NotFiniteError:
    """The error for figures by name of which some are infinite or NaN."""
    listed = ", ".join(f"{name} {value:g}" for name, value in figures.items())
    newest = steps(output)[-1:] if output else []
    return NotFiniteError(
        f"not finite at step {step}: {listed}; last good checkpoint: "
        f"{newest[0] if newest else 'none'}; a lower lr, clip_grad or precision 'fp32' may help"
    )
