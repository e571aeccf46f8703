"""One figure that says how good a model is, for a quality budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.data.loader import Batch
from pelacli.errors import RequestError
from pelacli.lowrank.calls import evaluating
from pelacli.lowrank.padding import padding_mask
from pelacli.measure.agreement import agreement, chooses_classes
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
    of samples (of a text's tokens, of a map's pixels) of the same class, or 100 · mean cosine of
    the outputs where these choose no class.

    Args:
        opened: the dense model; `score` measures its module as it is then.

    Attributes:
        metric: name of the figure: the task's, "same_class" or "cosine".

    Raises:
        RequestError: the samples can't be opened, the task has no metric, or there are no labels
            and the model gives a single number for a sample.
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
        if not self._labelled:
            self.metric = self._agreement_metric()
        elif self._task.MAIN is None:
            raise RequestError(f"--max-drop: task {task!r} has no metric; name another")
        else:
            self.metric = self._task.MAIN

    def _agreement_metric(self) -> str:
        """What two models' outputs are compared by, as the dense model's first batch shows."""
        batch = next(iter(self.samples))
        (output,) = self._outputs([batch])
        if output[0].numel() == 1:
            raise RequestError(
                f"--max-drop: {self._opened.ref} gives one number a sample, and no agreement says "
                "how far off it is; give --data with labels, and their --task"
            )
        choices = chooses_classes(output, padding_mask(batch["inputs"]), self._classes)
        return "same_class" if choices else "cosine"

    @torch.no_grad()
    def _outputs(self, batches: Iterable[Batch]) -> list[Tensor]:
        """The model's main output for each batch; they and the model are on the CPU then."""
        module = self._opened.module.to(self._place)
        try:
            with evaluating(module):
                return [
                    predict(module, devices.move_batch(batch["inputs"], self._place)).cpu()
                    for batch in batches
                ]
        finally:
            module.to("cpu")

    def score(self) -> float:
        """The figure of the model as it is now; at first, of the dense model.

        The module comes back to the CPU, where the rank engine works.
        """
        if not self._labelled and not self._dense:
            self._dense = self._outputs(self.samples)
            return 100.0
        module = self._opened.module.to(self._place)
        try:
            if self._labelled:
                return measure(self._opened, self.samples, self._task, True, self._place)[
                    self.metric
                ]
            with evaluating(module):
                found = agreement(
                    module,
                    _Recording(self._dense, self._place),
                    self.samples,
                    predict,
                    classes=self._classes,
                    device=self._place,
                )
            return found[self.metric] * (100 if self.metric == "cosine" else 1)
        finally:
            module.to("cpu")


class _Recording(nn.Module):
    """Gives the outputs of a model again, batch by batch in the same order."""

    def __init__(self, outputs: list[Tensor], place: torch.device) -> None:
        super().__init__()
        self._outputs, self._place = iter(outputs), place

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return next(self._outputs).to(self._place)
