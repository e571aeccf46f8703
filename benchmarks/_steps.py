"""The training steps that `pretrain_step.py` compares, on one shape of model.

``dense``: a plain supervised step of the dense model. ``reference``: healing as the paper's
released code does it (DeiT/engine.py), written from its description. ``ours``: healing by
`pelacli.train.healing.Stage`. Both heal the same low-rank model with the same three losses; all
are followed by the same optimizer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pelacli.lowrank import find, replace
from pelacli.models import heads, opening, outputs
from pelacli.models.opened import OpenModel
from pelacli.recipe.training import Loss, Pretrain
from pelacli.tasks import base, registry
from pelacli.train import optim, taps
from pelacli.train.healing import Stage

WAYS = ("dense", "reference", "ours")
LOSS = Loss(task=1.0, feature=1.0, perturbation=1.0, eps=1e-3)
SETTINGS = Pretrain(loss=LOSS, lr=1e-5, min_lr=0.0)


@dataclass(frozen=True)
class Shape:
    """What is trained: a timm model of random weights on random images.

    Attributes:
        size: pixels a side; small: a tiny network of the model's kind, to see that all runs.
        multiple: the ranks are multiples of it.
        precision: "no" or "bf16", of the autocast.
    """

    model: str = "vit_base"
    size: int = 224
    batch: int = 8
    ratio: Fraction = Fraction(1, 2)
    multiple: int = 1
    device: str = "cpu"
    precision: str = "no"
    small: bool = False


class Bench:
    """The models, a batch, and one step of any of the three ways."""

    def __init__(self, shape: Shape, way: str | None = None) -> None:
        """Build what ``way`` needs; all models where it is None."""
        torch.manual_seed(0)
        self.shape = shape
        arguments = {"img_size": shape.size}
        if shape.small:
            arguments |= {"embed_dim": 32, "depth": 2, "num_heads": 2}
        dense = opening.open(shape.model, weights="random", model_args=arguments)
        classes = heads.num_classes(dense)
        assert classes is not None
        images = torch.randn(shape.batch, 3, shape.size, shape.size)
        labels = torch.randint(classes, (shape.batch,))
        device = torch.device(shape.device)
        self.batch = {"inputs": images.to(device), "labels": labels.to(device)}
        self.task = registry.get("image-classification")
        self.steps: dict[str, Callable[[], Tensor]] = {}
        self.trained: dict[str, nn.Module] = {}
        self.teacher = dense.module.to(device).eval()
        if way in (None, "dense"):
            learner = self.teacher if way else copy.deepcopy(self.teacher)
            self._add("dense", learner, lambda: {"task": self._supervised(learner)})
        if way in (None, "reference"):
            student = low_rank(dense, shape)
            reference = Reference(student, self.teacher if way else copy.deepcopy(self.teacher))
            self._add("reference", student, lambda: reference.losses(self.batch))
        if way in (None, "ours"):
            own = low_rank(dense, shape)
            self.teacher.requires_grad_(False)
            opened = copy.copy(dense)
            opened.module = own
            stage = Stage(SETTINGS, opened, dense, self.task, labelled=True)
            self._add("ours", own, lambda: dict(stage.losses(own, self.batch)))

    def _supervised(self, module: nn.Module) -> Tensor:
        output = self.task.forward(module, self.batch)
        return base.losses(self.task, output, self.batch)["task"]

    def _add(self, way: str, module: nn.Module, losses: Callable[[], dict[str, Tensor]]) -> None:
        """One step of a way: forward, backward, update. Gives the loss."""
        module.train()
        optimizer = optim.optimizer(module, SETTINGS)
        half = self.shape.precision == "bf16"

        def step() -> Tensor:
            with torch.autocast(self.shape.device, torch.bfloat16, enabled=half):
                named = losses()
            total = torch.stack([value.float() for value in named.values()]).sum()
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            return total.detach()

        self.steps[way], self.trained[way] = step, module

    @torch.no_grad()
    def infer(self, way: str) -> None:
        """A forward pass of the model that the way trains, in eval mode."""
        module = self.trained[way].eval()
        half = self.shape.precision == "bf16"
        with torch.autocast(self.shape.device, torch.bfloat16, enabled=half):
            module(self.batch["inputs"])

    def flops(self, run: Callable[[], object]) -> int:
        """FLOPs of a call by torch's counter, which can't see into the CPU's fused attention."""
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        return int(counter.get_total_flops())


def low_rank(dense: OpenModel, shape: Shape) -> nn.Module:
    """A copy with the paper's uniform ranks and random factors: speed does not ask for more."""
    student = copy.deepcopy(dense.module)
    step = shape.multiple
    ranks = {
        la.name: int(la.params * shape.ratio / sum(la.shape)) // step * step
        for la in find.find_layers(student, head=dense.head)
        if la.reason is None
    }
    replace.replace_empty(student, ranks)
    generator = torch.Generator().manual_seed(0)
    for layer in find.low_rank_layers(student).values():
        for weight in (layer.down.weight, layer.up.weight):
            values = torch.randn(weight.shape, generator=generator)
            weight.data.copy_(values * 0.15 / layer.rank**0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return student.requires_grad_(True)


@dataclass
class Reference:
    """The released code's losses of a step, with what they cost.

    The student runs twice, once for its features and once for its logits, and both graphs are
    back-propagated. Every dense product is rebuilt under autograd, which keeps the residual. The
    teacher runs without gradients, but its weights require them and are not detached in the
    perturbation, so gradients for them are computed and kept, never cleared and never used.
    """

    student: nn.Module
    teacher: nn.Module

    def __post_init__(self) -> None:
        self.taps = taps.choose(self.student, None)
        self.pairs = [
            (layer, cast(Tensor, self.teacher.get_submodule(name).weight))
            for name, layer in find.low_rank_layers(self.student).items()
        ]

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy, feature and perturbation loss, weights applied."""
        with torch.no_grad(), outputs.caught(self.teacher, self.taps) as theirs:
            self.teacher(batch["inputs"])
        with outputs.caught(self.student, self.taps) as ours:
            self.student(batch["inputs"])
        gaps = [F.mse_loss(ours[name][0], theirs[name][0]) for name in self.taps]
        logits = self.student(batch["inputs"])
        kept = []
        for layer, weight in self.pairs:
            residual = torch.mm(layer.up.weight, layer.down.weight) - weight
            kept.append((torch.norm(residual, float("inf")) - LOSS.eps) ** 2)
        return {
            "task": LOSS.task * F.cross_entropy(logits, batch["labels"]),
            "feature": LOSS.feature * sum(gaps) / len(gaps),
            "perturbation": LOSS.perturbation * sum(kept) / len(kept),
        }
