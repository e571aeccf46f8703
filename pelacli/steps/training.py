"""What the training steps share: the folder they work in, the run, and the artefact at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pelacli import console
from pelacli.artefact import changes, loading, saving
from pelacli.artefact.loading import Artefact
from pelacli.errors import RequestError
from pelacli.manifest import versions
from pelacli.manifest.document import Manifest, StepRecord
from pelacli.models import precision
from pelacli.recipe import layout
from pelacli.recipe.fingerprint import fingerprint
from pelacli.recipe.step import Step
from pelacli.recipe.training import Pretrain, Train
from pelacli.steps import outputs, rate
from pelacli.steps.gain import Gain, gain
from pelacli.system import devices, files, leftovers, machine, processes
from pelacli.train import checkpoint, loop, regularisation
from pelacli.train.loop import Objective, RunOptions, Trained
from pelacli.train.run import updates
from pelacli.train.splits import Splits

_METRICS = "metrics.jsonl"


@dataclass
class Outcome:
    """What a training step made.

    Attributes:
        gain: of healing that was measured from its start on; None of any other training.
    """

    path: Path
    steps: int
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    gain: Gain | None = None


def train(
    step: Step[Train], model: Artefact, data: Splits, objective: Objective, *, resume: bool
) -> Outcome:
    """Train a model in place and write its artefact.

    Args:
        resume: go on from the last checkpoint, if there is one.
    """
    with outputs.writing(step.output):
        return _train(step, model, data, objective, resume)


def _train(
    step: Step[Train], model: Artefact, data: Splits, objective: Objective, resume: bool
) -> Outcome:
    settings, module = step.settings, model.module
    with console.file_progress(f"checking {step.source}"):
        inputs = loading.input_digest(step.source, model.opened)
    precision.in_float32(model.opened)
    if settings.drop_path is not None:
        regularisation.set_drop_path(module, settings.drop_path, settings.drop_path_rule)
    with (
        data.task.training(module, data.train.dataset),
        workplace(step, inputs) as work,
    ):
        search, start = None, None
        if isinstance(settings, Pretrain) and settings.lr == "auto":
            healing = cast("Step[Pretrain]", step)
            chosen = rate.resolved(healing, module, data, objective, work)
            settings, search, start = chosen.settings, chosen.record, chosen.start
        with console.progress(step.name, updates(settings, len(data.train))) as bar:
            # The first update waits for the evaluation before it, and for the workers.
            bar.announce(warm=1, then="evaluations come on top" if data.validation else "")
            options = RunOptions(step.seed, step.device, work, resume, bar, start)
            trained = loop.fit(module, objective, data.train, settings, options)
    gained = gain(trained, objective.criterion, settings, search)
    return finish(step, model, inputs, work, trained, gained)


@contextmanager
def workplace(step: Step[Train], inputs: str) -> Iterator[Path]:
    """The folder where a run keeps its checkpoints and metrics until its artefact is written.

    A request that is refused in the block, before there is a checkpoint, leaves no folder. Those
    above it were made with the lock of the output, which takes them away again.

    Args:
        inputs: digest of the weights that the step reads.

    Raises:
        RequestError: the folder holds an unfinished run of other settings, or of nobody knows
            which. To continue it with these would give weights that neither recipe describes.
    """
    work = layout.workplace(step.output)
    current = fingerprint(step, inputs)
    file = work / outputs.FINGERPRINT
    processes.wait(step.device)  # the first one has removed what a finished run left
    old = file.read_text(encoding="utf-8") if file.is_file() else None
    if old != current and checkpoint.steps(work):
        settings = "nobody knows which" if old is None else "other"
        remedy = "remove it" if old is None else "finish it with those, or remove it"
        raise RequestError(f"{work}: holds an unfinished run of {settings} settings; {remedy}")
    is_new = False
    if processes.join(step.device).is_main_process:
        is_new = not work.exists()
        work.mkdir(parents=True, exist_ok=True)
        if old != current:
            files.write(file, current.encode())  # another process may be reading it
    try:
        yield work
    except RequestError:
        if is_new and not checkpoint.steps(work):
            leftovers.discard(work)
        raise


def finish(
    step: Step[Train],
    model: Artefact,
    inputs: str,
    work: Path,
    trained: Trained,
    gained: Gain | None = None,
) -> Outcome:
    """Write the artefact of a finished run and remove the folder that it worked in."""
    described = changes.recounted(model.opened, model.manifest)
    metrics = {**trained.metrics, "steps": trained.steps, "losses": trained.losses}
    metrics |= gained.document() if gained else {}
    described.history = [
        *described.history,
        StepRecord(
            step=step.name,
            recipe=dict(step.document),
            seed=step.seed,
            versions=versions.versions(),
            machine=machine.description(devices.select(step.device)),
            metrics=metrics,
            seconds=trained.seconds,
            inputs=inputs,
            fingerprint=fingerprint(step, inputs),
        ),
    ]
    model.opened.module.to("cpu")
    state = processes.join(step.device)
    if state.is_main_process:  # one writer; the others wait until the artefact is there
        _write(model, described, step.output, work)
    state.wait_for_everyone()
    return Outcome(step.output, trained.steps, trained.metrics, trained.seconds, gained)


def _write(model: Artefact, described: Manifest, output: Path, work: Path) -> None:
    course = work / _METRICS
    extra = {_METRICS: course.read_bytes()} if course.is_file() else {}
    with console.file_progress(f"writing {output}"):
        saving.save(model.opened, described, output, extra=extra)
    leftovers.discard(work)
