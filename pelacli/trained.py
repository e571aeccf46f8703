"""What the two training steps share: data for a model, a place to work in, the artefact."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pelacli import artefact, atomic, checkpoint, manifest, processes, recipe, record, rundir, tasks
from pelacli.artefact import Artefact
from pelacli.data import Loader, loader
from pelacli.errors import RequestError
from pelacli.fingerprint import fingerprint
from pelacli.manifest import Manifest, StepRecord
from pelacli.models import OpenModel, num_classes
from pelacli.recipe import Recipe, Train
from pelacli.tasks import Base
from pelacli.train import Trained

_METRICS = "metrics.jsonl"


@dataclass
class Outcome:
    """What a training step made."""

    path: Path
    steps: int
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class Splits:
    """The loaders of a training section; ``validation`` is None where the data has no splits.

    Attributes:
        labelled: whether training has labels, and ``judged`` whether validation has.
    """

    task: Base
    train: Loader
    validation: Loader | None
    num_classes: int | None
    labelled: bool
    judged: bool

    @classmethod
    def open(
        cls, spec: Recipe, section: Train, opened: OpenModel, *, labelled: bool | None = True
    ) -> Splits:
        """Open train and validation data for a model.

        Args:
            labelled: whether to use labels; None means where the data has them and the model an
                output for each.

        Raises:
            RequestError: the data can't be used, or labels are wanted and there are none.
        """
        data = section.data or spec.data
        if data is None:
            raise RequestError("the recipe has no [data] section")
        task = tasks.get(*recipe.task_of(spec, section))
        if not task.LABELLED:
            labelled = False
        classes = num_classes(opened)
        train = task.open(
            data, data.train, inputs=opened.inputs, training=True, unlabelled=labelled is False
        )
        if labelled is None:
            labelled = train.labelled and (train.classes is None or len(train.classes) == classes)
            labelled = labelled and task.fits(opened)
            if not labelled:
                train = task.open(
                    data, data.train, inputs=opened.inputs, training=True, unlabelled=True
                )
        if labelled and not task.fits(opened):
            raise RequestError(
                f"{opened.ref}: gives no output that the task could learn from; heal it without "
                "labels (pretrain.labels = false), or with the task that it has"
            )
        size = section.batch_size or data.batch_size
        validation, judged = None, labelled
        if train.split is not None:
            plain = not labelled and not task.JUDGES_LABEL_FREE
            held_out = task.open(data, data.val, inputs=opened.inputs, unlabelled=plain)
            judged = not plain and held_out.labelled
            validation = loader(
                held_out,
                batch_size=size,
                seed=spec.seed,
                workers=data.workers,
                num_classes=classes if judged else None,
            )
        return cls(
            task,
            loader(
                train,
                batch_size=size,
                seed=spec.seed,
                shuffle=True,
                drop_last=True,
                workers=data.workers,
                num_classes=classes if labelled else None,
                augment=data.augment,
            ),
            validation,
            classes,
            labelled,
            judged,
        )


@contextmanager
def workplace(
    spec: Recipe, section: str, source: str, opened: OpenModel, output: Path
) -> Iterator[Path]:
    """Where a run keeps its checkpoints and metrics until its artefact is written.

    A request that is refused within the block, before there is a checkpoint, leaves no trace.

    Raises:
        RequestError: an unfinished run of other settings is there. To continue it with these would
            give weights that neither recipe describes.
    """
    work = rundir.workplace(output)
    mark = fingerprint(spec, section, artefact.input_digest(source, opened))
    note = work / "fingerprint"
    old = note.read_text(encoding="utf-8") if note.is_file() else mark
    if old != mark and checkpoint.steps(work):
        raise RequestError(
            f"{work}: holds an unfinished run of other settings; finish it with those, or remove it"
        )
    made: list[Path] = []
    if processes.join(spec.device).is_main_process:
        made = [path for path in (work, *work.parents) if not path.exists()]
        work.mkdir(parents=True, exist_ok=True)
        if old != mark or not note.is_file():
            atomic.write(note, mark.encode())  # another process may be reading it
    try:
        yield work
    except RequestError:
        if work in made and not checkpoint.steps(work):
            shutil.rmtree(work, ignore_errors=True)
            for path in made[1:]:
                with suppress(OSError):  # someone else has put something there
                    path.rmdir()
        raise


def finish(
    spec: Recipe,
    section: str,
    model: Artefact,
    source: str,
    output: Path,
    work: Path,
    result: Trained,
) -> Outcome:
    """Write the artefact of a finished run and clear its workplace."""
    described = record.recount(model.opened, model.manifest)
    inputs = artefact.input_digest(source, model.opened)
    metrics = {**result.metrics, "steps": result.steps, "losses": result.losses}
    described.history = [
        *described.history,
        StepRecord(
            step=section,
            recipe=recipe.resolved(spec),
            seed=spec.seed,
            versions=manifest.versions(),
            metrics=metrics,
            seconds=result.seconds,
            inputs=inputs,
            fingerprint=fingerprint(spec, section, inputs),
        ),
    ]
    model.opened.module.to("cpu")
    state = processes.join(spec.device)
    if state.is_main_process:  # one writer; the others wait until the artefact is there
        _write(model, described, output, work)
    state.wait_for_everyone()
    return Outcome(output, result.steps, result.metrics, result.seconds)


def _write(model: Artefact, described: Manifest, output: Path, work: Path) -> None:
    course = work / _METRICS
    extra = {_METRICS: course.read_bytes()} if course.is_file() else {}
    artefact.save(model.opened, described, output, extra=extra)
    shutil.rmtree(work, ignore_errors=True)
