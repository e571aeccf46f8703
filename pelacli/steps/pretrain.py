"""Heal: the low-rank student learns under the frozen dense teacher (PELA's intermediate stage)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pelacli import (
    artefact,
    console,
    lean,
    losses,
    lowrank,
    manifest,
    models,
    rundir,
    taps,
    tasks,
    train,
    trained,
)
from pelacli.agreement import agreement
from pelacli.artefact import Artefact
from pelacli.calls import evaluating
from pelacli.data import Batch
from pelacli.errors import RequestError
from pelacli.models import OpenModel, predict
from pelacli.recipe import Pretrain, Recipe
from pelacli.tasks import Base
from pelacli.trained import Outcome


def run(spec: Recipe, *, resume: bool = False) -> Outcome:
    """Train the student under its teacher by the recipe's [pretrain]; write the artefact."""
    section = spec.pretrain
    if section is None:
        raise RequestError("the recipe has no [pretrain] section")
    output = rundir.folder(spec, "pretrain")
    artefact.check_output(output)
    source = rundir.require(rundir.source(spec, "pretrain"), "pretrain")
    student = _student(source)
    teacher = open_teacher(spec, student)
    data = trained.Splits.open(spec, section, student.opened, labelled=section.labels)
    stage = Stage(section, student.opened, teacher, data.task, labelled=data.labelled)
    if section.drop_path is not None:
        models.set_drop_path(student.module, section.drop_path, section.drop_path_rule)
    with (
        data.task.training(student.module),
        trained.workplace(spec, "pretrain", source, student.opened, output) as work,
        console.progress("pretrain", train.updates(section, len(data.train))) as bar,
    ):
        result = train.fit(
            student.module,
            stage.losses,
            data.train,
            section,
            seed=spec.seed,
            output=work,
            evaluate=lambda module: stage.evaluate(module, data),
            main_metric=data.task.MAIN if data.labelled else "cosine",
            no_weight_decay=models.no_decay(student.module),
            resume=resume,
            device=spec.device,
            progress=bar,
            before=stage.begin,
        )
    return trained.finish(spec, "pretrain", student, source, output, work, result)


def open_teacher(spec: Recipe, student: Artefact) -> OpenModel:
    """The frozen dense original: the recipe's dense model, or the student's recorded source."""
    ref, how = rundir.dense(spec), rundir.how_to_open(spec, rundir.dense(spec))
    path = rundir.latest(Path(ref))
    if spec.teacher is None and path is not None and _is_low_rank(path):
        origin = student.manifest.source
        ref, how = origin.model, {"weights": origin.weights or "pretrained"}
    opened, _ = artefact.open(rundir.require(ref, "the teacher"), **how)
    if lowrank.low_rank_layers(opened.module):
        raise RequestError(f"{ref}: the teacher must be the dense model, and this one is low-rank")
    opened.module.eval().requires_grad_(False)
    return opened


@dataclass
class Stage:
    """One healing stage: which losses, between whom, on which taps."""

    section: Pretrain
    student: OpenModel
    teacher: OpenModel
    task: Base
    labelled: bool
    done: float = 1.0  # share of the run that is over: all taps are distilled, unless told less

    def __post_init__(self) -> None:
        self.taps = (
            taps.choose(self.student.module, self.section.taps) if self.section.loss.feature else []
        )
        if self.section.compile:
            taps.check_compiled(self.student.module, self.taps)
        # Each has its dense layer in the teacher: checked here, not matched in the loop.
        self.layers = list(lowrank.low_rank_layers(self.student.module))
        for name in self.layers:
            _check_pair(self.student.module, self.teacher.module, name)
        self._place: torch.device | None = None

    def place(self, device: torch.device) -> None:
        """Bring the teacher to the student's device, once and for all steps."""
        if self._place != device:
            models.place(self.teacher.module, device, self.section.channels_last)
            self._place = device

    def begin(self, done: float) -> None:
        """Before an update: the share of the run that is over decides which taps are distilled."""
        self.done = done

    def dense_weights(self) -> Iterator[Tensor]:
        """The frozen weights of ``layers``, where the teacher is now."""
        for name in self.layers:
            yield _dense_weight(self.teacher.module, name)

    def losses(self, student: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Named, weighted losses of a batch: one pass of the student, one of the bare teacher."""
        loss, some = self.section.loss, next(student.parameters())
        self.place(some.device)
        names = taps.joined(self.taps, self.done, self.section.taps_over)
        # Autograd goes back through what came last first. So the perturbation's gradients, each as
        # large as a factor, arise when those of the student's pass have freed its activations. In
        # shards they go first instead: the pass's own gradients are added to them while they are
        # sent around, and nothing may be adding to them at the same time.
        shards = hasattr(some, "full_tensor")
        named = {} if shards else self._perturbation(student)
        features: Mapping[str, list[Tensor]] = {}
        target: Any = None
        if loss.feature or loss.logits:
            # The teacher goes first: what its pass takes and frees is no peak above the student's
            # graph, which is still to come.
            with torch.no_grad(), taps.caught(self.teacher.module, names) as features:
                target = self.task.forward(self.teacher.module, batch)
        own_ways = self.section.compile or self.section.checkpointing or shards
        with taps.caught(student, names) as caught, lean.activations(student, on=not own_ways):
            output = self.task.forward(student, batch)
        if self.labelled and loss.task:
            named |= tasks.losses(self.task, output, batch, loss.task)
        if loss.feature:
            named["feature"] = loss.feature * losses.feature(
                [output for name in names for output in caught[name]],
                [output for name in names for output in features[name]],
            )
        if loss.logits:
            ours, theirs = models.main_output(output), models.main_output(target)
            named["logits"] = loss.logits * losses.logits(ours, theirs)
        return named | self._perturbation(student) if shards else named

    def _perturbation(self, student: nn.Module) -> dict[str, Tensor]:
        loss = self.section.loss
        if not loss.perturbation:
            return {}
        factors = (_factors(student, name) for name in self.layers)
        pairs = (
            (*pair, weight) for pair, weight in zip(factors, self.dense_weights(), strict=True)
        )
        value = losses.perturbation(pairs, loss.eps, loss.perturbation_form)
        return {"perturbation": loss.perturbation * value}

    def evaluate(self, module: nn.Module, data: trained.Splits) -> dict[str, float]:
        """The task's metrics where there are labels, and the agreement with the teacher."""
        if data.validation is None:
            return {}
        device = next(module.parameters()).device
        self.place(device)
        with evaluating(module):
            found = agreement(module, self.teacher.module, data.validation, predict, device=device)
        if data.labelled:
            found |= tasks.evaluate(module, data.validation, self.task, device, data.num_classes)
        return found


def _is_low_rank(path: Path) -> bool:
    """Whether the artefact is a factorised model; a dense one can be the teacher itself."""
    return any(layer.rank is not None for layer in manifest.read(path).layers)


def _student(source: str) -> Artefact:
    path = rundir.latest(Path(source))
    if path is None:
        raise RequestError(f"{source}: not an artefact; `pela decompose` makes one to heal")
    found = artefact.load(path)
    if not lowrank.low_rank_layers(found.module):
        raise RequestError(f"{path}: has no low-rank layers; there is nothing to heal")
    return found


def _factors(student: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """(up, down) of a layer of the module that trains, which may be a copy of the student."""
    layer = cast(lowrank.LowRankLinear, lowrank.submodule(student, name))
    return layer.up.weight, layer.down.weight


def _dense_weight(teacher: nn.Module, name: str) -> Tensor:
    weight: Tensor = lowrank.weight_of(lowrank.submodule(teacher, name))
    return weight


def _check_pair(student: nn.Module, teacher: nn.Module, name: str) -> None:
    up, down = _factors(student, name)
    theirs, ours = tuple(_dense_weight(teacher, name).shape), (up.shape[0], down.shape[1])
    if theirs != ours:
        raise RequestError(
            f"{name}: is {theirs} in the teacher and {ours} in the student; wrong teacher?"
        )
