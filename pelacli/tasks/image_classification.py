"""Image classification: images with one label each; accuracy in percent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from pelacli.data import Batch, Dataset, open_dataset
from pelacli.errors import RequestError
from pelacli.models import predict

if TYPE_CHECKING:
    from pelacli.models.types import ImageInput, TextInput
    from pelacli.recipe import Data

MAIN = "accuracy"
LABELLED = True


def open(
    data: Data,
    split: str,
    *,
    inputs: ImageInput | TextInput,
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


def forward(module: nn.Module, batch: Batch) -> Tensor:
    return predict(module, batch["inputs"])


def loss(output: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy with class numbers [B], or with mixed and smoothed labels [B, classes]."""
    if "labels" not in batch:
        raise RequestError("the data has no labels, which image classification needs")
    return F.cross_entropy(output.float(), batch["labels"])


def metrics(num_classes: int | None) -> Accuracy:
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
        self.loss.update(loss(output, batch), weight=len(output))

    def compute(self) -> dict[str, float]:
        """The figures so far."""
        shares = {name: 100 * float(share) for name, share in self.shares.compute().items()}
        return shares | {"loss": float(self.loss.compute())}
