"""Image classification: images with one label each; accuracy in percent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs
    from pelacli.models.opened import OpenModel
    from pelacli.recipe.schema import Data

from pelacli.console import info
from pelacli.data.dataset import Dataset, open_dataset
from pelacli.data.loader import Batch
from pelacli.errors import RequestError
from pelacli.models import class_names, heads
from pelacli.tasks.base import Base
from pelacli.tasks.common.heads import all_named, head_classes


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
        dataset = open_dataset(
            data.dataset,
            split,
            inputs=inputs,
            training=training,
            augment=data.augment,
            image_size=data.image_size,
            unlabelled=unlabelled,
        )
        return _numbered(dataset, getattr(inputs, "labels", ()), training)

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        """A fresh head where the data has other classes than the model, or only some of them; the
        names of the data's."""
        names, wanted = head_classes(dataset, classes)
        labels = getattr(opened.inputs, "labels", ())
        others = class_names.are_others(names, labels)
        own = dataset.own_classes
        if own is not None and len(own) < len(names):  # training will number them anew: `_numbered`
            names, wanted = own, classes or len(own)
            others = class_names.positions(own, labels) != list(range(len(own)))
        if wanted and (wanted != heads.num_classes(opened) or others):
            heads.set_classes(opened, wanted, seed=seed)
            info(f"a fresh head of {wanted} classes")
        elif labels or not names:
            return opened
        if names and opened.library == "transformers":
            class_names.write(opened, all_named(names, wanted))
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


def _numbered(dataset: Dataset, labels: Sequence[str], training: bool) -> Dataset:
    """The dataset with the model's numbers for its classes, where the model names all of them. To
    learn some of the model's classes alone, a fresh head is what is wanted."""
    places = class_names.positions(dataset.classes or [], labels) if dataset.labelled else None
    if places is None or (training and len(places) < len(labels)):
        return dataset
    return replace(
        dataset,
        make=_Renumbered(dataset.make, places),
        classes=list(labels),
        own_classes=dataset.classes,
    )


@dataclass
class _Renumbered:
    """A sample with another number for its class: place [the data's number]."""

    make: Callable[[Any, str], Batch]
    places: list[int]

    def __call__(self, sample: Any, where: str) -> Batch:
        item = self.make(sample, where)
        return item | {"labels": self.places[item["labels"]]}


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
