"""No task: samples without labels, for healing by distillation alone. There is nothing to score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pelacli.data import Batch, Dataset, open_dataset
from pelacli.errors import RequestError
from pelacli.models import predict

if TYPE_CHECKING:
    from pelacli.models.types import ImageInput, TextInput
    from pelacli.recipe import Data

MAIN = None
LABELLED = False


def open(
    data: Data,
    split: str,
    *,
    inputs: ImageInput | TextInput,
    training: bool = False,
    unlabelled: bool = True,
) -> Dataset:
    return open_dataset(
        data.dataset,
        split,
        inputs=inputs,
        training=training,
        augment=data.augment,
        image_size=data.image_size,
        unlabelled=True,
    )


def forward(module: nn.Module, batch: Batch) -> Tensor:
    return predict(module, batch["inputs"])


def loss(output: Tensor, batch: Batch) -> Tensor:
    raise RequestError(
        "task 'unlabelled' has no loss of its own: name a task, or set loss.task = 0"
    )


def metrics(num_classes: int | None) -> Nothing:
    return Nothing()


class Nothing:
    """Metrics of no task."""

    def to(self, device: torch.device) -> Nothing:
        return self

    def update(self, output: Any, batch: Batch) -> None:
        pass

    def compute(self) -> dict[str, float]:
        return {}
