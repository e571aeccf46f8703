"""One figure that says how good a model is, for a quality budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.lowrank.calls import evaluating
from pelacli.measure.agreement import agreement
from pelacli.measure.evaluation import measure, samples
from pelacli.models import heads
from pelacli.models.opened import OpenModel
from pelacli.models.prediction import predict
from pelacli.recipe.schema import Data
from pelacli.system import devices
from pelacli.system.devices import select


class Judge:
    """One figure that says how good a model is, in points, and 100 at best.

    The task's main metric where there are labels, else the agreement with the dense model: percent
    of samples of the same class, or for models without classes 100 · mean cosine of the outputs.

    Args:
        opened: the dense model; `score` measures its module as it is then.

    Attributes:
        metric: name of the figure.

    Raises:
        RequestError: the samples can't be opened, or the task has no metric.
    """

    def __init__(
        self,
        opened: OpenModel,
        data: Data,
        task: str | None,
        split: str | None,
        device: str,
        task_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.samples, self._task, self._labelled = samples(
            opened, data, task, split, task_args=task_args
        )
        self._opened, self._place = opened, select(device)
        self._dense: list[Tensor] = []
        self._classes = heads.num_classes(opened) is not None
        self.metric = "same_class" if self._classes else "cosine"
        if self._labelled:
            if self._task.MAIN is None:
                raise RequestError(f"--max-drop: task {task!r} has no metric; name another")
            self.metric = self._task.MAIN

    def score(self) -> float:
        """The figure of the model as it is now; at first, of the dense model.

        The module comes back to the CPU, where the rank engine works.
        """
        module = self._opened.module.to(self._place)
        try:
            if self._labelled:
                return measure(self._opened, self.samples, self._task, True, self._place)[
                    self.metric
                ]
            if not self._dense:
                with torch.no_grad(), evaluating(module):
                    for batch in self.samples:
                        inputs = devices.move_batch(batch["inputs"], self._place)
                        self._dense.append(predict(module, inputs).cpu())
                return 100.0
            with evaluating(module):
                found = agreement(
                    module,
                    _Recording(self._dense, self._place),
                    self.samples,
                    predict,
                    classes=self._classes,
                    device=self._place,
                )
            if self.metric not in found:  # an output for each of many places has no one class
                self._classes, self.metric = False, "cosine"
            return found[self.metric] * (1 if self._classes else 100)
        finally:
            module.to("cpu")


class _Recording(nn.Module):
    """Gives the outputs of a model again, batch by batch in the same order."""

    def __init__(self, outputs: list[Tensor], place: torch.device) -> None:
        super().__init__()
        self._outputs, self._place = iter(outputs), place

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return next(self._outputs).to(self._place)
