"""The healing stage: the low-rank student, its frozen teacher, and the losses between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from pelacli.data.loader import Batch
from pelacli.data.token_parts import token_parts
from pelacli.distillation import registry as distillation
from pelacli.errors import RequestError
from pelacli.lowrank import find, linear
from pelacli.lowrank import layer as lowrank_layer
from pelacli.lowrank.calls import evaluating
from pelacli.lowrank.padding import padding_mask, unpadded
from pelacli.measure.agreement import agreement
from pelacli.models import heads, outputs
from pelacli.models.opened import OpenModel
from pelacli.models.prediction import predict
from pelacli.models.token_head import has_vocabulary
from pelacli.recipe.training import Pretrain
from pelacli.tasks import base
from pelacli.tasks.base import Base
from pelacli.train import losses as train_losses
from pelacli.train import recompute, splits, taps
from pelacli.train.criterion import Criterion


@dataclass
class Stage:
    """The healing stage: what the student learns from its teacher, and by which losses.

    The teacher is frozen and on the student's device.

    Args:
        labelled: whether batches have labels, which the task's own loss is computed from.

    Attributes:
        taps: names of the modules whose outputs are distilled, first to last.
        layers: names of the student's low-rank layers, each of which is dense in the teacher.

    Raises:
        RequestError: taps that match nothing, or a teacher of other shapes.
    """

    settings: Pretrain
    student: OpenModel
    teacher: OpenModel
    task: Base
    labelled: bool
    taps: list[str] = field(init=False)
    layers: list[str] = field(init=False)
    _is_target_checked: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        student, settings = self.student.module, self.settings
        self.taps = _choose_taps(student, settings, self.task) if settings.loss.feature else []
        if settings.compile:
            taps.check_compiled(student, self.taps)
        self.layers = list(find.low_rank_layers(student))
        for name in self.layers:
            _check_pair(student, self.teacher.module, name)

    def losses(self, student: nn.Module, batch: Batch, done: float = 1.0) -> Mapping[str, Tensor]:
        """Named, weighted losses of a batch, from one pass of the student and one of the teacher.

        Args:
            student: the module that trains, which may be a copy of the student in shards.
            done: the share of the run that is over, 0 to 1, which decides the taps that are
                distilled; at its end all are.
        """
        loss = self.settings.loss
        # Autograd starts with what was computed last. So the perturbation, whose gradients are each
        # as large as a factor, is computed first: they arise when the student's activations are
        # freed. In shards it is computed last: FSDP sends the gradients of the student's pass
        # around while it adds to them, and nothing else may add to them at the same time.
        in_shards = hasattr(next(student.parameters()), "full_tensor")
        named = {} if in_shards else self._perturbation(student)
        names = taps.joined(self.taps, done, self.settings.taps_over)
        # The teacher goes first: the memory of its pass is free again before the student's graph
        # takes its own.
        target, target_features = self._teacher_pass(batch, names)
        output, features = self._student_pass(student, batch, names, in_shards)
        if self.labelled and loss.task:
            named |= base.losses(self.task, output, batch, loss.task)
        mask = padding_mask(batch["inputs"])  # padding is not distilled
        if loss.feature:
            named["feature"] = loss.feature * train_losses.feature(
                [unpadded(output, mask) for name in names for output in features[name]],
                [unpadded(output, mask) for name in names for output in target_features[name]],
                loss.feature_unit,
            )
        if self._compares_outputs:
            named |= self._between_outputs(
                unpadded(outputs.main_output(output), mask),
                unpadded(outputs.main_output(target), mask),
            )
        return named | self._perturbation(student) if in_shards else named

    @property
    def _gives_logits(self) -> bool:
        student = self.student
        return heads.num_classes(student) is not None or has_vocabulary(student.module)

    @property
    def _compares_outputs(self) -> bool:
        weights = self.settings.loss.weights
        return any(weights[name] for name in ("output", *distillation.names()))

    def _teacher_pass(
        self, batch: Batch, names: Sequence[str]
    ) -> tuple[Any, Mapping[str, list[Tensor]]]:
        """(the teacher's output, its taps' outputs by name); nothing where no loss needs them."""
        if not self.settings.loss.feature and not self._compares_outputs:
            return None, {}
        with torch.no_grad(), outputs.caught(self.teacher.module, names) as features:
            target = self.task.forward(self.teacher.module, batch)
        if not self._is_target_checked:  # once: to look at it makes an accelerator wait
            self._check_target(outputs.main_output(target))
            self._is_target_checked = True
        return target, features

    def _check_target(self, target: Tensor) -> None:
        """Refuse what no rate could learn from, before the loss is blamed for it."""
        if not target.is_meta and not torch.isfinite(target).all():
            half = self.settings.precision == "fp16"
            remedy = ", or train with precision = 'bf16' or 'fp32'" if half else ""
            raise RequestError(
                f"{self.teacher.ref}: the teacher's output is not finite, so there is nothing to "
                f"learn from it; look at its weights and the samples{remedy}"
            )

    def _student_pass(
        self, student: nn.Module, batch: Batch, names: Sequence[str], in_shards: bool
    ) -> tuple[Any, Mapping[str, list[Tensor]]]:
        """(the student's output, its taps' outputs by name)."""
        saves_itself = self.settings.compile or self.settings.checkpointing or in_shards
        with (
            outputs.caught(student, names) as features,
            recompute.activations(student, on=not saves_itself),
        ):
            return self.task.forward(student, batch), features

    def _between_outputs(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        loss = self.settings.loss
        kinds = {name: name for name in distillation.names()}
        kinds["output"] = "kl" if self._gives_logits else "relative"
        return {
            name: weight * distillation.get(kinds[name]).loss(student, teacher, loss)
            for name, weight in loss.weights.items()
            if name in kinds and weight
        }

    def _perturbation(self, student: nn.Module) -> dict[str, Tensor]:
        loss = self.settings.loss
        if not loss.perturbation:
            return {}
        pairs = (
            (*_factors(student, name), _dense_weight(self.teacher.module, name))
            for name in self.layers
        )
        value = train_losses.perturbation(pairs, loss.eps, loss.perturbation_form)
        return {"perturbation": loss.perturbation * value}

    def criterion(self, data: splits.Splits) -> Criterion:
        """What decides which weights are the best: the task's metric where the student learns from
        labels and is judged by them, and then, or else, the distance from the teacher."""
        learns_from_labels = data.labelled and data.judged and self.settings.loss.task > 0
        main = self.task.MAIN if learns_from_labels else None
        return Criterion((main,) if main else (), ("kl", "relative_error"))

    def evaluate(self, module: nn.Module, data: splits.Splits) -> dict[str, float]:
        """The distance from the teacher, and the task's metrics where there are labels. A language
        model's logits are held for a few texts at a time."""
        if data.validation is None:
            return {}
        device = next(module.parameters()).device
        with evaluating(module):
            metrics = agreement(
                module,
                self.teacher.module,
                token_parts(module, data.validation),
                predict,
                divergence=self._gives_logits,
                device=device,
            )
        if data.judged:
            metrics |= base.evaluate(module, data.validation, self.task, device, data.num_classes)
        return metrics


def _choose_taps(student: nn.Module, settings: Pretrain, task: Base) -> list[str]:
    """The recipe's taps, or else the task's, or else all blocks."""
    usual = task.taps(student) if settings.taps is None else None
    return usual or taps.choose(student, settings.taps)


def _factors(student: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """(up [out, r], down [r, in]) of a layer of the module that trains, perhaps a copy of the
    student."""
    layer = cast(linear.LowRankLinear, find.submodule(student, name))
    down, up = layer.factors()
    return up, down


def _dense_weight(teacher: nn.Module, name: str) -> Tensor:
    weight: Tensor = lowrank_layer.weight_of(find.submodule(teacher, name))
    return weight


def _check_pair(student: nn.Module, teacher: nn.Module, name: str) -> None:
    up, down = _factors(student, name)
    dense, low_rank = tuple(_dense_weight(teacher, name).shape), (up.shape[0], down.shape[1])
    if dense != low_rank:
        raise RequestError(
            f"{name}: is {dense} in the teacher and {low_rank} in the student; wrong teacher?"
        )
