"""What the two training steps share: a place to work in, and the artefact at the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pelacli.artefact import changes, loading, saving
from pelacli.artefact.loading import Artefact
from pelacli.errors import RequestError
from pelacli.manifest import versions
from pelacli.manifest.document import Manifest, StepRecord
from pelacli.models.opened import OpenModel
from pelacli.recipe import layout
from pelacli.recipe.fingerprint import fingerprint
from pelacli.recipe.step import Step
from pelacli.system import files, processes
from pelacli.train import checkpoint
from pelacli.train.loop import Trained

_METRICS = "metrics.jsonl"


@dataclass
class Outcome:
    """What a training step made."""

    path: Path
    steps: int
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@contextmanager
def workplace(step: Step[Any], opened: OpenModel) -> Iterator[Path]:
    """Where a run keeps its checkpoints and metrics until its artefact is written.

    A request that is refused within the block, before there is a checkpoint, leaves no trace.

    Raises:
        RequestError: an unfinished run of other settings is there. To continue it with these would
            give weights that neither recipe describes.
    """
    work = layout.workplace(step.output)
    mark = fingerprint(step, loading.input_digest(step.source, opened))
    note = work / "fingerprint"
    old = note.read_text(encoding="utf-8") if note.is_file() else mark
    if old != mark and checkpoint.steps(work):
        raise RequestError(
            f"{work}: holds an unfinished run of other settings; finish it with those, or remove it"
        )
    made: list[Path] = []
    if processes.join(step.device).is_main_process:
        made = [path for path in (work, *work.parents) if not path.exists()]
        work.mkdir(parents=True, exist_ok=True)
        if old != mark or not note.is_file():
            files.write(note, mark.encode())  # another process may be reading it
    try:
        yield work
    except RequestError:
        if work in made and not checkpoint.steps(work):
            shutil.rmtree(work, ignore_errors=True)
            for path in made[1:]:
                with suppress(OSError):  # someone else has put something there
                    path.rmdir()
        raise


def finish(step: Step[Any], model: Artefact, work: Path, result: Trained) -> Outcome:
    """Write the artefact of a finished run and clear its workplace."""
    described = changes.recounted(model.opened, model.manifest)
    inputs = loading.input_digest(step.source, model.opened)
    metrics = {**result.metrics, "steps": result.steps, "losses": result.losses}
    described.history = [
        *described.history,
        StepRecord(
            step=step.name,
            recipe=dict(step.document),
            seed=step.seed,
            versions=versions.versions(),
            metrics=metrics,
            seconds=result.seconds,
            inputs=inputs,
            fingerprint=fingerprint(step, inputs),
        ),
    ]
    model.opened.module.to("cpu")
    state = processes.join(step.device)
    if state.is_main_process:  # one writer; the others wait until the artefact is there
        _write(model, described, step.output, work)
    state.wait_for_everyone()
    return Outcome(step.output, result.steps, result.metrics, result.seconds)


def _write(model: Artefact, described: Manifest, output: Path, work: Path) -> None:
    course = work / _METRICS
    extra = {_METRICS: course.read_bytes()} if course.is_file() else {}
    saving.save(model.opened, described, output, extra=extra)
    shutil.rmtree(work, ignore_errors=True)
