"""What a model is trained and judged on: one file per task, imported when it is asked for.

A task file is a module with the names of `Task`. To add a task, write the file and name it in
`_FILES`; nothing else changes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from pelacli.calls import evaluating
from pelacli.data import Batch, Dataset
from pelacli.errors import RequestError
from pelacli.models import to_device

if TYPE_CHECKING:
    from pelacli.models.types import ImageInput, TextInput
    from pelacli.recipe import Data

_FILES = {
    "image-classification": "pelacli.tasks.image_classification",
    "unlabelled": "pelacli.tasks.unlabelled",
}


class Metrics(Protocol):
    """Figures that are collected batch by batch, over all processes."""

    def to(self, device: torch.device) -> Any: ...
    def update(self, output: Any, batch: Batch) -> None: ...
    def compute(self) -> dict[str, float]: ...


class Task(Protocol):
    """What a task module offers.

    Attributes:
        MAIN: the metric that models are compared by, larger is better, in percent points where
            it is a share; None where the task has none.
        LABELLED: whether its samples have labels, so that `loss` can be asked for.
    """

    MAIN: str | None
    LABELLED: bool

    def open(
        self,
        data: Data,
        split: str,
        *,
        inputs: ImageInput | TextInput,
        training: bool = False,
        unlabelled: bool = False,
    ) -> Dataset:
        """The samples of one split, as a recipe's section describes them."""

    def forward(self, module: nn.Module, batch: Batch) -> Any:
        """The model's output for a batch."""

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """A scalar; the mean over the batch."""

    def metrics(self, num_classes: int | None) -> Metrics:
        """Fresh figures for an evaluation."""


def names() -> list[str]:
    """The tasks there are."""
    return list(_FILES)


def get(name: str) -> Task:
    """The task of this name.

    Raises:
        RequestError: there is none; the nearest names are given.
    """
    if name not in _FILES:
        near = difflib.get_close_matches(name, _FILES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_FILES)}"
        raise RequestError(f"unknown task {name!r}: {hint}")
    return cast(Task, import_module(_FILES[name]))


@torch.no_grad()
def evaluate(
    module: nn.Module,
    loader: Iterable[Batch],
    task: Task,
    device: torch.device | str = "cpu",
    num_classes: int | None = None,
) -> dict[str, float]:
    """The task's metrics of a model, in eval mode; its mode before comes back.

    Every process of a distributed run must call it; each adds its part, and all get the whole.

    Args:
        num_classes: the model's; by default the loader's.
    """
    metrics = task.metrics(num_classes or getattr(loader, "num_classes", None))
    metrics.to(torch.device(device))
    with evaluating(module):
        for batch in loader:
            batch = to_device(batch, device)
            metrics.update(task.forward(module, batch), batch)
    return metrics.compute()
