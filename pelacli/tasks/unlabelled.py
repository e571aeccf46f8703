"""No task: samples without labels, for healing by distillation alone, and without metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs
    from pelacli.recipe.data import Data

from pelacli.data.dataset import Dataset, open_dataset
from pelacli.data.loader import Batch
from pelacli.errors import RequestError
from pelacli.tasks.base import Base


class Task(Base):
    LABELLED: ClassVar[bool] = False

    def open(
        self,
        data: Data,
        split: str,
        *,
        inputs: Inputs,
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

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        raise RequestError(
            "task 'unlabelled' has no loss of its own: name a task, or set loss.task = 0"
        )

    def metrics(self, num_classes: int | None) -> NoMetrics:
        return NoMetrics()


class NoMetrics:
    """No figures."""

    def to(self, device: torch.device) -> NoMetrics:
        return self

    def update(self, output: Any, batch: Batch) -> None:
        pass

    def compute(self) -> dict[str, float]:
        return {}
