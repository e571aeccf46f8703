"""Image classification: images with one label each; accuracy in percent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs
    from pelacli.models.opened import OpenModel
    from pelacli.recipe.data import Data

from pelacli.console import info, warn_once
from pelacli.data.dataset import Dataset, open_dataset
from pelacli.data.loader import Batch
from pelacli.errors import RequestError
from pelacli.models import class_names, heads
from pelacli.tasks.base import Base
from pelacli.tasks.common.heads import all_named, head_classes
from pelacli.tasks.common.metrics import ClassMetrics


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
        numbered = _numbered(dataset, getattr(inputs, "labels", ()), training)
        classes = dataset.classes or []
        if dataset.labelled and len(classes) == 1 and numbered is dataset:
            raise RequestError(
                f"{data.dataset}: has one class only ({classes[0]}), and a classifier "
                "tells two or more apart; give the folder of all class folders"
            )
        return numbered

    def fits(self, opened: OpenModel) -> bool:
        """Whether the model has an output for each class; a backbone gives features."""
        return heads.num_classes(opened) is not None

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        """A fresh head where the data has other classes than the model, or only some of them; the
        names of the data's."""
        names, count = head_classes(dataset, classes)
        labels = getattr(opened.inputs, "labels", ())
        others = class_names.are_others(names, labels)
        own_names = dataset.own_classes
        if own_names is not None and len(own_names) < len(names):  # see `_numbered`
            names, count = own_names, classes or len(own_names)
            others = class_names.positions(names, labels) != list(range(len(names)))
        if count and (count != heads.num_classes(opened) or others):
            heads.set_classes(opened, count, seed=seed)
            info(f"a fresh head of {count} classes")
        elif labels or not names:
            return opened
        if names:
            class_names.write(opened, all_named(names, count))
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
    train on only some of the model's classes, the data's own numbers stay: `fit` makes a head for
    them."""
    numbers = class_names.positions(dataset.classes or [], labels) if dataset.labelled else None
    if numbers is None and dataset.labelled and not training:
        _check_names(dataset, labels)
    if numbers is None or (training and len(numbers) < len(labels)):
        return dataset
    return replace(
        dataset,
        make=_Renumbered(dataset.make, numbers),
        classes=list(labels),
        own_classes=dataset.classes,
    )


def _check_names(dataset: Dataset, labels: Sequence[str]) -> None:
    """Refuse to judge a model by classes of which it names only some. Where it names none, the data
    may have other words for the same classes, such as ImageNet's numbers: they count in order,
    which is said.

    Args:
        labels: the model's names; empty where it has none.
    """
    classes = dataset.classes or []
    unknown = [name for name in classes if class_names.positions([name], labels) is None]
    if not labels or not unknown:
        return
    some = ", ".join(labels[:3])
    if len(unknown) < len(classes):
        raise RequestError(
            f"{dataset.spec}: the model has no class {unknown[0]!r}, but {some}, …; rename or "
            "remove it, or fine-tune the model on these classes"
        )
    warn_once(
        f"{dataset.spec}: other names",
        f"{dataset.spec}: none of its classes ({', '.join(classes[:3])}, …) is called as one of "
        f"the model's ({some}, …), so the first counts as the model's first, and so on",
    )


@dataclass
class _Renumbered:
    """A sample with another number for its class: ``numbers[the data's number]``."""

    make: Callable[[Any, str], Batch]
    numbers: list[int]

    def __call__(self, sample: Any, where: str) -> Batch:
        item = self.make(sample, where)
        return item | {"labels": self.numbers[item["labels"]]}


class Accuracy(ClassMetrics):
    """``accuracy`` and, from ten classes on, ``top5``, in percent; ``loss``, the cross-entropy."""

    def __init__(self, num_classes: int) -> None:
        ranks = {"accuracy": 1} | ({"top5": 5} if num_classes >= 10 else {})
        super().__init__(
            MetricCollection(
                {
                    name: MulticlassAccuracy(
                        num_classes, top_k=k, average="micro", validate_args=False
                    )
                    for name, k in ranks.items()
                }
            )
        )

    def update(self, output: Tensor, batch: Batch) -> None:
        self.add(output, batch["labels"])
