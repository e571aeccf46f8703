"""One figure that says how good a model is, for a quality budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from pelacli.data.loader import Batch
from pelacli.data.token_parts import token_parts
from pelacli.errors import RequestError
from pelacli.lowrank.calls import evaluating
from pelacli.lowrank.padding import padding_mask
from pelacli.measure.agreement import POINTS, agreement, chooses_classes
from pelacli.measure.evaluation import EvaluationData, measure
from pelacli.models import heads
from pelacli.models.opened import OpenModel
from pelacli.models.prediction import predict
from pelacli.system import devices
from pelacli.system.shelf import Shelf


class Judge:
    """One figure that says how good a model is, in points, and 100 at best.

    The task's main metric where there are labels, else the agreement with the dense model: percent
    of samples (of a text's tokens, of a map's pixels) of the same class, or 100 · mean cosine of
    the outputs where these choose no class.

    Args:
        opened: the dense model; `score` measures its module as it is then.
        device: where the model runs. It is where it was afterwards.

    Attributes:
        metric: name of the figure: the task's, "same_class" or "cosine".

    Raises:
        RequestError: the task has no metric, or there are no labels and the model gives a single
            number for a sample.
    """

    def __init__(self, opened: OpenModel, data: EvaluationData, device: torch.device) -> None:
        self._opened, self._data, self._device = opened, data, device
        # A language model's logits of all samples are far larger than the model.
        self._dense: Shelf | None = None
        self._classes = heads.num_classes(opened) is not None
        self.metric = self._task_metric() if data.labelled else self._agreement_metric()

    def score(self) -> float:
        """The figure of the model as it is now; at first, of the dense model."""
        if not self._data.labelled and self._dense is None:
            self._dense = Shelf()
            batches = token_parts(self._opened.module, self._data.samples)
            for number, output in enumerate(self._outputs(batches)):
                self._dense.put(str(number), output)
            return 100.0
        module = self._opened.module
        with devices.placed(module, self._device):
            if self._data.labelled:
                return measure(self._opened, self._data, self._device)[self.metric]
            assert self._dense is not None
            with evaluating(module):
                figures = agreement(
                    module,
                    _Recording(self._dense, self._device),
                    token_parts(module, self._data.samples),
                    predict,
                    classes=self._classes,
                    device=self._device,
                )
            return POINTS[self.metric] * figures[self.metric]

    def _task_metric(self) -> str:
        if self._data.task.MAIN is None:
            raise RequestError("--max-drop: the task has no metric; name another with --task")
        return self._data.task.MAIN

    def _agreement_metric(self) -> str:
        """What two models' outputs are compared by, as the dense model's first batch shows."""
        batch = next(iter(self._data.samples))
        (output,) = self._outputs([batch])
        if output[0].numel() == 1:
            raise RequestError(
                f"--max-drop: {self._opened.ref} gives one number a sample, and no agreement says "
                "how far off it is; give --data with labels, and their --task"
            )
        choices = chooses_classes(output, padding_mask(batch["inputs"]), self._classes)
        return "same_class" if choices else "cosine"

    def _outputs(self, batches: Iterable[Batch]) -> Iterator[Tensor]:
        """The model's main output for each batch, on the CPU."""
        module = self._opened.module
        with devices.placed(module, self._device), evaluating(module), torch.no_grad():
            for batch in batches:
                yield predict(module, devices.move_batch(batch["inputs"], self._device)).cpu()


class _Recording(nn.Module):
    """Gives the outputs of a model again, batch by batch in the same order."""

    def __init__(self, outputs: Shelf, device: torch.device) -> None:
        super().__init__()
        self._outputs, self._device, self._next = outputs, device, 0

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        output: Tensor = self._outputs.get(str(self._next))
        self._next += 1
        return output.to(self._device)
