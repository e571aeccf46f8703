"""Image classification: images with one label each; accuracy in percent."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from pelacli import models
from pelacli.console import say
from pelacli.data import Batch, Dataset, open_dataset
from pelacli.errors import RequestError
from pelacli.tasks.base import Base

if TYPE_CHECKING:
    from pelacli.models import Inputs, OpenModel
    from pelacli.recipe import Data


class Task(Base):
    MAIN: ClassVar[str | None] = "accuracy"

    def open(
        self,
        data: Data,
        split: str,
        *,
        inputs: Inputs,
        training: bool = False,
        unlabelled: bool = False,
    ) -> Dataset:
        return open_dataset(
            data.dataset,
            split,
            inputs=inputs,
            training=training,
            augment=data.augment,
            image_size=data.image_size,
            unlabelled=unlabelled,
        )

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        """A fresh head where the data has other classes than the model has outputs."""
        wanted = classes or dataset.num_classes
        if wanted is not None and wanted != models.num_classes(opened):
            models.set_classes(opened, wanted, seed=seed)
            say(f"a fresh head of {wanted} classes")
        return opened

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy with class numbers [B], or with mixed and smoothed labels [B, classes]."""
        if "labels" not in batch:
            raise RequestError("the data has no labels, which image classification needs")
        return F.cross_entropy(output.float(), batch["labels"])

    def metrics(self, num_classes: int | None) -> Accuracy:
        if not num_classes:
            raise RequestError("image classification needs to know the number of classes")
        return Accuracy(num_classes)


class Accuracy:
    """``accuracy`` and, from ten classes on, ``top5``, in percent; ``loss``, the cross-entropy."""

    def __init__(self, num_classes: int) -> None:
        ranks = {"accuracy": 1} | ({"top5": 5} if num_classes >= 10 else {})
        self.shares = MetricCollection(
            {
                name: MulticlassAccuracy(num_classes, top_k=k, average="micro", validate_args=False)
                for name, k in ranks.items()
            }
        )
        self.loss = MeanMetric()

    def to(self, device: torch.device) -> Accuracy:
        self.shares.to(device)
        self.loss.to(device)
        return self

    def update(self, output: Tensor, batch: Batch) -> None:
        self.shares.update(output, batch["labels"])
        loss = F.cross_entropy(output.float(), batch["labels"])
        self.loss.update(loss, weight=len(output))

    def compute(self) -> dict[str, float]:
        """The figures so far."""
        shares = {name: 100 * float(share) for name, share in self.shares.compute().items()}
        return shares | {"loss": float(self.loss.compute())}
