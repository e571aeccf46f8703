"""What a task offers to the steps: the class `Base`, which every task derives from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pelacli.data.dataset import Dataset
    from pelacli.models.inputs import Inputs
    from pelacli.models.opened import OpenModel
    from pelacli.recipe.data import Data

from pelacli.console import warn
from pelacli.data.loader import Batch, Samples
from pelacli.data.token_parts import token_parts
from pelacli.lowrank.calls import evaluating
from pelacli.models import outputs
from pelacli.models.prediction import predict
from pelacli.recipe.fields import Section
from pelacli.system import processes
from pelacli.system.devices import move_batch


class Metrics(Protocol):
    """Figures that are collected batch by batch, over all processes."""

    def to(self, device: torch.device) -> Any: ...
    def update(self, output: Any, batch: Batch) -> None: ...
    def compute(self) -> dict[str, float]: ...


class Base(Section):
    """A task. To add one, write ``tasks/NAME.py`` with a class ``Task(Base)``; nothing else changes
    (see `pelacli.tasks.registry`).

    Its fields are its settings: a recipe's ``task_args``, validated. A task keeps no other state.

    A task must give:

    - `open`: the samples of a split;
    - `loss`: of a batch, unless `LABELLED` is False;
    - `metrics`: figures that are collected batch by batch; or `evaluate`, where samples are
      compared with each other.

    It may give, where what stands here does not fit:

    - `fits` and `fit`, if it needs a head that models may lack;
    - `forward`, if `loss` and `metrics` need more of the model than its main output;
    - `training`, if the model has parts for training alone;
    - `taps`, if not all blocks should be distilled;
    - `without_files`, if an evaluation writes files.

    Attributes:
        MAIN: the metric that models are compared by; larger is better, and a share is in percent.
            None where the task has none.
        LABELLED: whether its samples have labels, so that `loss` can be computed.
        JUDGES_LABEL_FREE: whether training without labels is still judged by validation's labels.
    """

    MAIN: ClassVar[str | None] = None
    LABELLED: ClassVar[bool] = True
    JUDGES_LABEL_FREE: ClassVar[bool] = False

    # Data ---------------------------------------------------------------------------------------

    def open(
        self,
        data: Data,
        split: str,
        *,
        inputs: Inputs,
        training: bool = False,
        unlabelled: bool = False,
    ) -> Dataset:
        """The samples of one split of a recipe's ``data``.

        Args:
            inputs: what the model takes.
            training: with random augmentation.
            unlabelled: without labels, also from data that has none.

        Raises:
            RequestError: the data can't be read, or the model does not take samples of this kind.
        """
        raise NotImplementedError

    # Model --------------------------------------------------------------------------------------

    def fits(self, opened: OpenModel) -> bool:
        """Whether the task can judge the model as it is. A segmentation task can't judge a
        classifier: `fit` makes a segmenter of it."""
        return True

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        """The model to train: the given one, with a fresh head where the data needs another, or a
        larger one that is built around it. Low-rank layers stay low-rank.

        Args:
            dataset: the training split.
            classes: the recipe's ``num_classes``; None: as many as the data has. Where the task
                makes a head of classes, see `pelacli.tasks.common.heads.head_classes`.
            seed: of fresh weights.

        Returns:
            The same model, changed or not, or another one that holds its modules.
        """
        return opened

    def training(self, module: nn.Module, dataset: Samples) -> AbstractContextManager[Any]:
        """While active, the module may have parts that are for training alone (momentum copies).
        Checkpoints hold them, artefacts do not.

        Args:
            dataset: the training split.
        """
        return nullcontext()

    def taps(self, module: nn.Module) -> list[str] | None:
        """Names of the modules to distil where the recipe names none; None: all blocks."""
        return None

    # Batches ------------------------------------------------------------------------------------

    def forward(self, module: nn.Module, batch: Batch) -> Any:
        """What `loss` and `metrics` need of the model for a batch. ``batch["inputs"]`` is what the
        model takes: a tensor, or a dict of its keyword arguments."""
        return predict(module, batch["inputs"])

    def loss(self, output: Any, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """A scalar, the mean over the batch; or several by name, which are added up.

        Args:
            output: of `forward`.
        """
        raise NotImplementedError

    # Judging ------------------------------------------------------------------------------------

    def without_files(self) -> Base:
        """The same task, which writes no files when it evaluates. A baseline is judged by it, so
        that the files hold the results of the model that it is compared with."""
        return self

    def metrics(self, num_classes: int | None) -> Metrics:
        """Fresh figures for one evaluation.

        Args:
            num_classes: the model's; None where it has no classes.
        """
        raise NotImplementedError

    @torch.no_grad()
    def evaluate(
        self,
        module: nn.Module,
        loader: Iterable[Batch],
        device: torch.device,
        num_classes: int | None,
    ) -> dict[str, float]:
        """All figures of a model over a split. They are NaN where the model gives NaN, which some
        metrics would count as a good answer."""
        metrics = self.metrics(num_classes)
        metrics.to(device)
        broken = torch.zeros((), device=device)
        with evaluating(module):
            for batch in token_parts(module, loader):
                batch = move_batch(batch, device)
                output = self.forward(module, batch)
                broken += outputs.main_output(output).amax().isnan()  # NaN is the largest
                metrics.update(output, batch)
        figures = metrics.compute()
        broken_batches = processes.total(int(broken))
        if broken_batches:
            warn(
                f"{type(module).__name__}: gives NaN on {broken_batches} batches; no figure counts"
            )
            return dict.fromkeys(figures, math.nan)
        return figures


def losses(task: Base, output: Any, batch: Batch, weight: float = 1.0) -> dict[str, Tensor]:
    """The task's losses by name, times a weight; "task" where there is but one."""
    loss = task.loss(output, batch)
    named = loss if isinstance(loss, Mapping) else {"task": loss}
    return {name: weight * value for name, value in named.items()}


def evaluate(
    module: nn.Module,
    loader: Iterable[Batch],
    task: Base,
    device: torch.device | str = "cpu",
    num_classes: int | None = None,
) -> dict[str, float]:
    """The task's metrics of a model in eval mode, which is set back afterwards.

    Every process of a distributed run must call it: each judges its part of the samples, and all
    get the figures of the whole.

    Args:
        num_classes: the model's; by default the loader's.
    """
    classes = num_classes or getattr(loader, "num_classes", None)
    return task.evaluate(module, loader, torch.device(device), classes)
