"""One update of the weights: the gradients of its batches, and the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor

if TYPE_CHECKING:
    from pelacli.recipe.training import Train

from pelacli.data.loader import Batch
from pelacli.data.seeding import seed_all
from pelacli.errors import RequestError
from pelacli.factorize.batches import samples_in
from pelacli.system.devices import move_batch
from pelacli.train import checkpoint, optim
from pelacli.train.regularisation import enter_training
from pelacli.train.run import Run
from pelacli.train.weights import Weights

_MODEL = 3  # its random numbers are kept apart from those of the loader's samples, batches, order


@dataclass(frozen=True)
class Learner:
    """The weights in training and what changes them.

    Attributes:
        optimizer: accelerate's, around timm's.
        scheduler: timm's; None where the learning rate stays as it is.
    """

    accelerator: Accelerator
    settings: Train
    weights: Weights
    optimizer: Any
    scheduler: Any

    def enter_training(self) -> None:
        """Put the weights that train into training mode, with dropout as the settings have it."""
        drop_path = bool(self.settings.drop_path)
        enter_training(self.weights.trained, dropout=self.settings.dropout, drop_path=drop_path)


@dataclass(frozen=True)
class Update:
    """What an update gave.

    Attributes:
        losses: means over its batches and over all processes, by name.
        rate: the learning rate, before the factors of single groups.
        samples: how many all processes have seen together.
    """

    losses: dict[str, float]
    rate: float
    samples: int


def update(learner: Learner, batches: Iterator[Batch], run: Run, output: Path | None) -> Update:
    """Take the next batches and update the weights once. The run's step counts up by one.

    Args:
        output: the run's folder, whose last good checkpoint an error names.

    Raises:
        PelaError: a loss is infinite or NaN. The weights stay as they were.
    """
    settings, optimizer = learner.settings, learner.optimizer
    if learner.scheduler is not None:  # the rate of this update, not of the one before
        learner.scheduler.step_update(run.step)
    losses, samples = _accumulate_gradients(learner, batches, run)
    means = _means(learner.accelerator, losses)
    if not all(math.isfinite(value) for value in means.values()):
        raise checkpoint.not_finite(run.step + 1, means, output)
    trained = learner.weights.trained
    if settings.clip_grad is not None:
        learner.accelerator.clip_grad_norm_(trained.parameters(), settings.clip_grad)
    if settings.factor_decay == "product" and settings.weight_decay:
        optim.decay_products(trained, optimizer, settings.weight_decay)
    optimizer.step()
    optimizer.zero_grad()
    run.step += 1
    learner.weights.update(run.step)
    return Update(means, optim.rate(optimizer), samples)


def _accumulate_gradients(
    learner: Learner, batches: Iterator[Batch], run: Run
) -> tuple[dict[str, Tensor], int]:
    """The forward and backward passes of an update.

    Returns:
        (this process's losses by name, the number of samples of all processes).
    """
    accelerator, settings = learner.accelerator, learner.settings
    losses: dict[str, Tensor] = {}
    samples = 0
    for part in range(run.accumulate):
        batch = move_batch(next(batches), accelerator.device, settings.channels_last)
        number = run.step * run.accumulate + part
        seed_all(run.seed, _MODEL, number, accelerator.process_index)
        with learner.weights.syncing(part == run.accumulate - 1):
            named = learner.weights.forward(batch, run.step / run.total)
            accelerator.backward(_total(named) / run.accumulate)
        for name, value in named.items():
            losses[name] = losses.get(name, 0.0) + value.detach().float() / run.accumulate
        samples += samples_in(batch["inputs"]) * accelerator.num_processes
    return losses, samples


def _total(named: Mapping[str, Tensor]) -> Tensor:
    total = torch.stack([value.float() for value in named.values()]).sum() if named else None
    if total is None or not total.requires_grad:
        raise RequestError("nothing to train on: no loss with a weight above 0 reaches the model")
    return total


def _means(accelerator: Accelerator, values: Mapping[str, Tensor]) -> dict[str, float]:
    """The losses as numbers, averaged over processes: if one has a NaN, all see it."""
    stacked = torch.stack(list(values.values()))
    if accelerator.num_processes > 1:
        stacked = accelerator.reduce(stacked, "mean")
    return dict(zip(values, stacked.tolist(), strict=True))
