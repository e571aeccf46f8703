"""Text classification: texts, or pairs of them, with one label each; accuracy in percent."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
)

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs
    from pelacli.models.opened import OpenModel
    from pelacli.recipe.data import Data

from pelacli.console import info
from pelacli.data.dataset import Dataset, open_text
from pelacli.data.formats.text_columns import Columns
from pelacli.data.loader import Batch
from pelacli.data.tokens import Tokens
from pelacli.errors import RequestError
from pelacli.models import heads
from pelacli.models.inputs import TextInput
from pelacli.tasks.base import Base
from pelacli.tasks.common.heads import head_classes
from pelacli.tasks.common.metrics import ClassMetrics


class Task(Base):
    MAIN: ClassVar[str | None] = "accuracy"
    SCORES: ClassVar[bool] = False  # whether labels are scores, and not classes

    text: list[str] | None = Field(None, description="columns of the text, or of the pair")
    label: str | None = Field(None, description="column of the label")

    @field_validator("text")
    @classmethod
    def _one_or_two(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and len(names) not in (1, 2):
            raise ValueError("name one column, or two")
        return names

    def open(
        self,
        data: Data,
        split: str,
        *,
        inputs: Inputs,
        training: bool = False,
        unlabelled: bool = False,
    ) -> Dataset:
        Tokens.of(inputs, data.dataset)  # or its error
        assert isinstance(inputs, TextInput)
        return open_text(
            data.dataset,
            split,
            inputs=inputs,
            columns=Columns(None if self.text is None else tuple(self.text), self.label),
            unlabelled=unlabelled,
            scores=self.SCORES,
        )

    def fits(self, opened: OpenModel) -> bool:
        """Whether the model has an output for each class; an encoder gives an embedding."""
        return (heads.num_classes(opened) or 0) >= 2

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        """The model as a classifier: a fresh head where it has none, or other classes."""
        if not dataset.labelled:
            raise RequestError(f"{dataset.spec}: the texts have no labels, which the task needs")
        names, count = head_classes(dataset, classes)
        if count < 2:
            raise RequestError(
                f"{dataset.spec}: all texts have the class {names[0]!r}; a classifier needs two"
            )
        numbers = [str(number) for number in range(len(names), count)]
        return with_outputs(opened, dataset, names + numbers, seed)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy with class numbers [B], or with smoothed labels [B, classes]."""
        return F.cross_entropy(output.float(), labels(batch))

    def metrics(self, num_classes: int | None) -> TextMetrics:
        if not num_classes or num_classes < 2:
            raise RequestError("text classification needs a model with two classes or more")
        return TextMetrics(num_classes)


def labels(batch: Batch) -> Tensor:
    """The labels [B] of a batch.

    Raises:
        RequestError: there are none.
    """
    if "labels" not in batch:
        raise RequestError("the texts have no labels, which the task needs")
    return cast(Tensor, batch["labels"])


def with_outputs(opened: OpenModel, dataset: Dataset, names: list[str], seed: int) -> OpenModel:
    """The model itself where it has these outputs, else with a fresh head of them.

    Args:
        names: of the outputs; numbers where they have none.
    """
    assert isinstance(opened.inputs, TextInput)
    known = opened.inputs.classes
    numbered = all(name == str(number) for number, name in enumerate(names))
    if heads.num_classes(opened) == len(names) and (numbered or known is None or [*known] == names):
        return opened
    pad = Tokens.of(opened.inputs, dataset.spec).padding
    fitted = heads.with_head(opened, "SequenceClassification", seed, names, pad)
    info(f"a fresh head: {type(fitted.module).__name__} of {len(names)} outputs")
    return fitted


class TextMetrics(ClassMetrics):
    """``accuracy``; ``f1``, the mean of the classes' F1; ``matthews``, the correlation
    coefficient: all in percent. ``loss``, the cross-entropy."""

    def __init__(self, num_classes: int) -> None:
        options = {"num_classes": num_classes, "validate_args": False}
        super().__init__(
            MetricCollection(
                {
                    "accuracy": MulticlassAccuracy(average="micro", **options),
                    "f1": MulticlassF1Score(average="macro", **options),
                    "matthews": MulticlassMatthewsCorrCoef(**options),
                },
                compute_groups=False,
            )
        )

    def update(self, output: Tensor, batch: Batch) -> None:
        self.add(output, labels(batch))
