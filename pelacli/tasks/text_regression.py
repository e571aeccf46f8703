"""Text regression: a score for a text or for a pair of texts (STS-B), by a model of one output."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric

if TYPE_CHECKING:
    from pelacli.models.opened import OpenModel

from pelacli.data.dataset import Dataset
from pelacli.data.loader import Batch
from pelacli.errors import RequestError
from pelacli.models import heads
from pelacli.tasks import text_classification
from pelacli.tasks.common.metrics import Correlations


class Task(text_classification.Task):
    MAIN: ClassVar[str | None] = "spearman"
    SCORES: ClassVar[bool] = True

    def fits(self, opened: OpenModel) -> bool:
        """Whether the model has one output, the score."""
        return heads.num_classes(opened) == 1

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        """The model with one output, fresh where it has another number of them."""
        if classes not in (None, 1):
            raise RequestError(
                f"num_classes = {classes}: text regression has one output, the score; leave it out"
            )
        if not dataset.labelled:
            raise RequestError(f"{dataset.spec}: the texts have no scores, which the task needs")
        return text_classification.with_outputs(opened, dataset, ["0"], seed)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean squared error of the output [B, 1] and the scores [B]."""
        return F.mse_loss(predictions(output), text_classification.labels(batch).float())

    def metrics(self, num_classes: int | None) -> RegressionMetrics:  # type: ignore[override]
        return RegressionMetrics()


def predictions(output: Tensor) -> Tensor:
    """[B, 1] → [B].

    Raises:
        RequestError: the model has no output of this shape.
    """
    if output.ndim != 2 or output.shape[1] != 1:
        raise RequestError("text regression needs a model of one output; fine-tune it for that")
    return output[:, 0].float()


class RegressionMetrics(Correlations):
    """``spearman`` and ``pearson``, the correlations with the scores times 100; ``mse``."""

    def __init__(self) -> None:
        super().__init__(mse=MeanMetric())

    def update(self, output: Tensor, batch: Batch) -> None:
        predicted, scores = predictions(output), text_classification.labels(batch).float()
        self.add(predicted, scores)
        self.parts["mse"].update(F.mse_loss(predicted, scores), weight=len(scores))

    def compute(self) -> dict[str, float]:
        """The figures so far."""
        return super().compute() | {"mse": float(self.parts["mse"].compute())}
