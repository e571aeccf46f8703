"""Figures that several tasks have in common, made of torchmetrics, which gather over processes."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef

from pelacli.system import processes


class TorchMetrics:
    """Torchmetrics by name, which move together.

    Attributes:
        parts: name → a `torchmetrics.Metric` or a collection of them.
    """

    def __init__(self, **parts: Any) -> None:
        self.parts = parts
        for part in parts.values():
            for metric in part.values() if isinstance(part, MetricCollection) else [part]:
                # torchmetrics would wait for the others where one process works alone.
                metric.distributed_available_fn = _is_shared

    def to(self, device: torch.device) -> Self:
        for part in self.parts.values():
            part.to(device)
        return self


class ClassMetrics(TorchMetrics):
    """Shares of classes in percent, by the names of the collection, and ``loss``, the mean
    cross-entropy."""

    def __init__(self, shares: MetricCollection) -> None:
        super().__init__(shares=shares, loss=MeanMetric())

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            logits: [B, classes].
            labels: [B], numbers of classes.
        """
        self.parts["shares"].update(logits, labels)
        self.parts["loss"].update(F.cross_entropy(logits.float(), labels), weight=len(logits))

    def compute(self) -> dict[str, float]:
        """The figures so far."""
        shares = self.parts["shares"].compute().items()
        figures = {name: 100 * float(share) for name, share in shares}
        return figures | {"loss": float(self.parts["loss"].compute())}


class Correlations(TorchMetrics):
    """``spearman`` and ``pearson``, the correlations of predictions and scores, times 100."""

    def __init__(self, **others: Any) -> None:
        super().__init__(spearman=SpearmanCorrCoef(), pearson=PearsonCorrCoef(), **others)

    def add(self, predicted: Tensor, scores: Tensor) -> None:
        """Add a batch: two tensors [B]."""
        self.parts["spearman"].update(predicted, scores)
        self.parts["pearson"].update(predicted, scores)

    def compute(self) -> dict[str, float]:
        """The figures so far."""
        return {name: 100 * float(self.parts[name].compute()) for name in ("spearman", "pearson")}


def _is_shared() -> bool:
    """Whether other processes have figures of their own."""
    return processes.rank_and_size()[1] > 1
