"""Heal: the low-rank student learns under the frozen dense teacher (PELA's intermediate stage)."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from pelacli import console
from pelacli.artefact import loading, locating, saving
from pelacli.artefact.loading import Artefact
from pelacli.errors import RequestError
from pelacli.lowrank import find
from pelacli.manifest import document, lookup
from pelacli.models.opened import OpenModel
from pelacli.recipe.step import Step
from pelacli.recipe.training import Pretrain
from pelacli.steps import gain, training
from pelacli.steps.training import Outcome
from pelacli.system import devices, processes
from pelacli.train.healing import Stage
from pelacli.train.loop import Objective
from pelacli.train.splits import Splits, open_splits


def run(step: Step[Pretrain], *, resume: bool = False) -> Outcome:
    """Train the student under its teacher and write the artefact."""
    saving.check_output(step.output, step.source)
    processes.meet(step.device)
    student = _open_student(lookup.require(step.source, step.name))
    teacher = open_teacher(step, student)
    data = open_splits(step, student.opened, labelled=step.settings.labels)
    stage = Stage(step.settings, student.opened, teacher, data.task, labelled=data.labelled)
    device, channels_last = devices.select(step.device), step.settings.channels_last
    devices.move_module(teacher.module, device, channels_last)
    outcome = training.train(step, student, data, _objective(stage, data), resume=resume)
    if outcome.gain is not None:
        gain.say(outcome.gain, step, student.opened, outcome.steps)
    return outcome


def open_teacher(step: Step[Pretrain], student: Artefact) -> OpenModel:
    """The frozen dense original: the recipe's dense model, or the student's recorded source.

    Raises:
        RequestError: that model is low-rank.
    """
    ref, how = step.dense, lookup.how_to_open(step.dense, step.opening)
    path = locating.locate(ref) if step.dense == step.model else None
    if path is not None and _is_low_rank(path):
        origin = student.manifest.source
        ref, how = origin.model, {"weights": origin.weights or "pretrained"}
    with console.file_progress(f"opening the teacher, {ref}"):
        opened, _ = loading.open(lookup.require(ref, "the teacher"), **how)
    if find.low_rank_layers(opened.module):
        raise RequestError(f"{ref}: the teacher must be the dense model, and this one is low-rank")
    opened.module.eval().requires_grad_(False)
    return opened


def _is_low_rank(path: Path) -> bool:
    """Whether the artefact is a factorised model; a dense one can be the teacher itself."""
    return any(layer.rank is not None for layer in document.read(path).layers)


def _open_student(source: str) -> Artefact:
    path = locating.locate(source)
    if path is None:
        raise RequestError(f"{source}: not an artefact; `pela decompose` makes one to heal")
    with console.file_progress(f"opening {path}"):
        student = loading.load(path)
    if not find.low_rank_layers(student.module):
        raise RequestError(f"{path}: has no low-rank layers; there is nothing to heal")
    return student


def _objective(stage: Stage, data: Splits) -> Objective:
    """The stage's losses, and what the student is judged by, from its start on."""

    def evaluate(module: nn.Module) -> dict[str, float]:
        return stage.evaluate(module, data)

    return Objective(stage.losses, evaluate, stage.criterion(data), judges_start=True)
