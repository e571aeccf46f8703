"""The healing stage: the low-rank student, its frozen teacher, and the losses between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pelacli.data.loader import Batch
from pelacli.errors import RequestError
from pelacli.lowrank import find, linear
from pelacli.lowrank import layer as lowrank_layer
from pelacli.lowrank.calls import evaluating
from pelacli.lowrank.padding import padding_mask, unpadded
from pelacli.measure.agreement import agreement
from pelacli.models import outputs
from pelacli.models.opened import OpenModel
from pelacli.models.prediction import predict
from pelacli.recipe.schema import Pretrain
from pelacli.system import devices
from pelacli.tasks import base
from pelacli.tasks.base import Base
from pelacli.train import losses as train_losses
from pelacli.train import recompute, splits, taps


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
        module, wanted = self.student.module, self.section.taps
        self.taps: list[str] = []
        if self.section.loss.feature:
            usual = self.task.taps(module) if wanted is None else None
            self.taps = usual or taps.choose(module, wanted)
        if self.section.compile:
            taps.check_compiled(self.student.module, self.taps)
        # Each has its dense layer in the teacher: checked here, not matched in the loop.
        self.layers = list(find.low_rank_layers(self.student.module))
        for name in self.layers:
            _check_pair(self.student.module, self.teacher.module, name)
        self._place: torch.device | None = None

    def place(self, device: torch.device) -> None:
        """Bring the teacher to the student's device, once and for all steps."""
        if self._place != device:
            devices.move_module(self.teacher.module, device, self.section.channels_last)
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
        if loss.feature or loss.logits or loss.kl or loss.cosine:
            # The teacher goes first: what its pass takes and frees is no peak above the student's
            # graph, which is still to come.
            with torch.no_grad(), taps.caught(self.teacher.module, names) as features:
                target = self.task.forward(self.teacher.module, batch)
        own_ways = self.section.compile or self.section.checkpointing or shards
        with taps.caught(student, names) as caught, recompute.activations(student, on=not own_ways):
            output = self.task.forward(student, batch)
        if self.labelled and loss.task:
            named |= base.losses(self.task, output, batch, loss.task)
        mask = padding_mask(batch["inputs"])  # what a text is filled up with is not distilled
        if loss.feature:
            named["feature"] = loss.feature * train_losses.feature(
                [unpadded(output, mask) for name in names for output in caught[name]],
                [unpadded(output, mask) for name in names for output in features[name]],
            )
        if loss.logits or loss.kl or loss.cosine:
            named |= self._outputs(
                unpadded(outputs.main_output(output), mask),
                unpadded(outputs.main_output(target), mask),
            )
        return named | self._perturbation(student) if shards else named

    def _outputs(self, ours: Tensor, theirs: Tensor) -> dict[str, Tensor]:
        """The losses between the outputs of student and teacher."""
        loss, named = self.section.loss, {}
        if loss.logits:
            named["logits"] = loss.logits * train_losses.logits(ours, theirs)
        if loss.kl:
            named["kl"] = loss.kl * train_losses.kl(ours, theirs, loss.temperature)
        if loss.cosine:
            named["cosine"] = loss.cosine * train_losses.cosine(ours, theirs)
        return named

    def _perturbation(self, student: nn.Module) -> dict[str, Tensor]:
        loss = self.section.loss
        if not loss.perturbation:
            return {}
        factors = (_factors(student, name) for name in self.layers)
        pairs = (
            (*pair, weight) for pair, weight in zip(factors, self.dense_weights(), strict=True)
        )
        value = train_losses.perturbation(pairs, loss.eps, loss.perturbation_form)
        return {"perturbation": loss.perturbation * value}

    def evaluate(self, module: nn.Module, data: splits.Splits) -> dict[str, float]:
        """The task's metrics where there are labels, and the agreement with the teacher."""
        if data.validation is None:
            return {}
        device = next(module.parameters()).device
        self.place(device)
        with evaluating(module):
            found = agreement(module, self.teacher.module, data.validation, predict, device=device)
        if data.judged:
            found |= base.evaluate(module, data.validation, self.task, device, data.num_classes)
        return found


def _factors(student: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """(up, down) of a layer of the module that trains, which may be a copy of the student."""
    layer = cast(linear.LowRankLinear, find.submodule(student, name))
    return layer.up.weight, layer.down.weight


def _dense_weight(teacher: nn.Module, name: str) -> Tensor:
    weight: Tensor = lowrank_layer.weight_of(find.submodule(teacher, name))
    return weight


def _check_pair(student: nn.Module, teacher: nn.Module, name: str) -> None:
    up, down = _factors(student, name)
    theirs, ours = tuple(_dense_weight(teacher, name).shape), (up.shape[0], down.shape[1])
    if theirs != ours:
        raise RequestError(
            f"{name}: is {theirs} in the teacher and {ours} in the student; wrong teacher?"
        )
