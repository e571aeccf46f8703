"""Heal: the low-rank student learns under the frozen dense teacher (PELA's intermediate stage)."""

from __future__ import annotations

from pathlib import Path

from pelacli import console
from pelacli.artefact import loading, saving
from pelacli.artefact.loading import Artefact
from pelacli.errors import RequestError
from pelacli.lowrank import find
from pelacli.manifest import document, lookup
from pelacli.models.opened import OpenModel
from pelacli.recipe.schema import Pretrain
from pelacli.recipe.step import Step
from pelacli.steps import training
from pelacli.steps.training import Outcome
from pelacli.train import loop, regularisation, splits
from pelacli.train import run as train_run
from pelacli.train.healing import Stage


def run(step: Step[Pretrain], *, resume: bool = False) -> Outcome:
    """Train the student under its teacher and write the artefact."""
    section = step.settings
    saving.check_output(step.output)
    student = _student(lookup.require(step.source, step.name))
    teacher = open_teacher(step, student)
    data = splits.Splits.open(step, student.opened, labelled=section.labels)
    stage = Stage(section, student.opened, teacher, data.task, labelled=data.labelled)
    if section.drop_path is not None:
        regularisation.set_drop_path(student.module, section.drop_path, section.drop_path_rule)
    with (
        data.task.training(student.module),
        training.workplace(step, student.opened) as work,
        console.progress("pretrain", train_run.updates(section, len(data.train))) as bar,
    ):
        result = loop.fit(
            student.module,
            stage.losses,
            data.train,
            section,
            seed=step.seed,
            output=work,
            evaluate=lambda module: stage.evaluate(module, data),
            main_metric=data.task.MAIN if data.judged else "cosine",
            no_weight_decay=regularisation.no_decay(student.module),
            resume=resume,
            device=step.device,
            progress=bar,
            before=stage.begin,
        )
    return training.finish(step, student, work, result)


def open_teacher(step: Step[Pretrain], student: Artefact) -> OpenModel:
    """The frozen dense original: the recipe's dense model, or the student's recorded source."""
    ref, how = step.dense, lookup.how_to_open(step.dense, step.opening)
    path = lookup.latest(Path(ref))
    if step.dense == step.model and path is not None and _is_low_rank(path):
        origin = student.manifest.source
        ref, how = origin.model, {"weights": origin.weights or "pretrained"}
    opened, _ = loading.open(lookup.require(ref, "the teacher"), **how)
    if find.low_rank_layers(opened.module):
        raise RequestError(f"{ref}: the teacher must be the dense model, and this one is low-rank")
    opened.module.eval().requires_grad_(False)
    return opened


def _is_low_rank(path: Path) -> bool:
    """Whether the artefact is a factorised model; a dense one can be the teacher itself."""
    return any(layer.rank is not None for layer in document.read(path).layers)


def _student(source: str) -> Artefact:
    path = lookup.latest(Path(source))
    if path is None:
        raise RequestError(f"{source}: not an artefact; `pela decompose` makes one to heal")
    found = loading.load(path)
    if not find.low_rank_layers(found.module):
        raise RequestError(f"{path}: has no low-rank layers; there is nothing to heal")
    return found
