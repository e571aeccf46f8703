"""A model's figures on a dataset: what the steps that measure have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pelacli import console, models, processes, tasks
from pelacli.agreement import agreement
from pelacli.calls import evaluating
from pelacli.data import Loader, loader
from pelacli.errors import RequestError
from pelacli.models import OpenModel, predict
from pelacli.recipe import Data


def place(device: str) -> torch.device:
    """Where to run: "cpu", or else the accelerator; with "auto" only if there is one.

    Raises:
        RequestError: there is none of that kind.
    """
    joined: torch.device = processes.join(device).device
    if device == "auto":
        return joined
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kinds = ["cpu"] if found is None else ["cpu", found.type]
    if device not in kinds:
        raise RequestError(f"device {device!r}: this machine has {' and '.join(kinds)}")
    return joined if joined.type == device else torch.device(device)


def samples(
    opened: OpenModel,
    data: Data,
    task: str | None = None,
    split: str | None = None,
    batch_size: int | None = None,
    task_args: Mapping[str, Any] | None = None,
) -> tuple[Loader, tasks.Base, bool]:
    """The samples, the task, and whether the samples have labels that fit the model.

    Args:
        task: its name; None takes classification, of images or of texts, where there are labels
            for it.
    """
    classes = models.num_classes(opened)
    kind = "text" if isinstance(opened.inputs, models.TextInput) else "image"
    chosen = tasks.get(task or (f"{kind}-classification" if classes else "unlabelled"), task_args)
    dataset = chosen.open(data, split or data.val, inputs=opened.inputs)
    labelled = chosen.LABELLED and dataset.labelled
    if labelled and not chosen.fits(opened):
        raise RequestError(
            f"{opened.ref}: gives no output that task {task!r} could judge; `pela finetune` builds "
            "what the task needs around it"
        )
    if chosen.LABELLED and not labelled:
        dataset = chosen.open(data, split or data.val, inputs=opened.inputs, unlabelled=True)
    size = batch_size or data.batch_size
    wanted = classes if labelled else None
    return (
        loader(dataset, batch_size=size, workers=data.workers, num_classes=wanted),
        chosen,
        labelled,
    )


def measure(
    opened: OpenModel, samples: Loader, task: tasks.Base, labelled: bool, place: torch.device
) -> dict[str, float]:
    """The task's metrics; empty where there are no labels. The model moves to the device."""
    if not labelled:
        return {}
    opened.module.to(place)
    with console.progress(f"evaluating {opened.ref}"):
        return tasks.evaluate(opened.module, samples, task, place, models.num_classes(opened))


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
        self._opened, self._place = opened, place(device)
        self._dense: list[Tensor] = []
        self._classes = models.num_classes(opened) is not None
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
                        inputs = models.to_device(batch["inputs"], self._place)
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
