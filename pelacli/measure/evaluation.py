"""A model's figures on a dataset: what the steps that measure have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pelacli import console
from pelacli.data.dataset import Dataset
from pelacli.data.loader import Loader, loader
from pelacli.errors import RequestError
from pelacli.models import heads
from pelacli.models.inputs import TextInput
from pelacli.models.opened import OpenModel
from pelacli.models.token_head import has_vocabulary
from pelacli.recipe.data import Data
from pelacli.tasks import base, registry
from pelacli.tasks.common.labels import open_with_or_without


@dataclass(frozen=True)
class EvaluationData:
    """What a model is judged on.

    Attributes:
        samples: batches of the split.
        task: what the model is judged by.
        task_name: of it.
        labelled: whether the samples have labels that fit the model. Without them there are no
            metrics of the task, and only agreement with another model can be measured.
    """

    samples: Loader
    task: base.Base
    task_name: str
    labelled: bool

    @property
    def main_metric(self) -> str | None:
        """Name of the task's main metric; None where it has none or there are no labels."""
        return self.task.MAIN if self.labelled else None


def open_data(
    opened: OpenModel,
    data: Data,
    task: str | None = None,
    task_args: Mapping[str, Any] | None = None,
    *,
    split: str | None = None,
    batch_size: int | None = None,
    insists: bool = True,
) -> EvaluationData:
    """Open the data that a model is judged on.

    Args:
        task: its name; None takes what the model's output is for (`_task_of_output`).
        task_args: the task's settings.
        split, batch_size: in place of the data's own.
        insists: whether to refuse a model that gives no output for the task. Else it is judged by
            its agreement with another model alone, which is said.

    Raises:
        RequestError: the data can't be opened, or the model gives no output for the task.
    """
    classes = heads.num_classes(opened)
    if task is None:
        task = _task_of_output(opened)
    judged_by = registry.get(task, task_args)
    if not insists and not judged_by.fits(opened):
        console.warn_once(
            f"judged without task {task}",
            f"{opened.ref}: {_no_output(task)}, so it is compared with another model alone; for "
            "figures of the task add [finetune], which gives it a head, or name a checkpoint that "
            "has one",
        )
        task, judged_by = "unlabelled", registry.get("unlabelled")

    def open_split(unlabelled: bool) -> Dataset:
        return judged_by.open(data, split or data.val, inputs=opened.inputs, unlabelled=unlabelled)

    dataset = open_split(False) if insists else open_with_or_without(open_split)
    labelled = judged_by.LABELLED and dataset.labelled
    if labelled and not judged_by.fits(opened):
        raise RequestError(
            f"{opened.ref}: {_no_output(task)}; `pela finetune` builds what the task needs around "
            "it, and task 'unlabelled' compares it with another model as it is"
        )
    if judged_by.LABELLED and not labelled:
        dataset = open_split(True)
    samples = loader(
        dataset,
        batch_size=batch_size or data.batch_size,
        workers=data.workers,
        num_classes=classes if labelled else None,
    )
    return EvaluationData(samples, judged_by, task, labelled)


def _task_of_output(opened: OpenModel) -> str:
    """The task that a model's output is for: classification, of images or of texts, or language
    modelling; "unlabelled" of any other output, as that of a backbone."""
    inputs = opened.inputs
    if heads.num_classes(opened):
        return "text-classification" if isinstance(inputs, TextInput) else "image-classification"
    predicts_tokens = isinstance(inputs, TextInput) and inputs.causal is not None
    if predicts_tokens and has_vocabulary(opened.module):
        return "language-modelling"
    return "unlabelled"


def _no_output(task: str) -> str:
    """What a model lacks, in the middle of a message."""
    if task.endswith("-classification"):
        return f"has no classes (a backbone), so task {task!r} can't judge it"
    return f"gives no output that task {task!r} could judge"


def measure(opened: OpenModel, data: EvaluationData, device: torch.device) -> dict[str, float]:
    """The task's metrics; empty where there are no labels. The model moves to the device."""
    if not data.labelled:
        return {}
    opened.module.to(device)
    samples = data.samples
    with (
        console.progress(f"evaluating {opened.ref}", len(samples)) as bar,
        samples.watched(bar.advance),
    ):
        classes = heads.num_classes(opened)
        return base.evaluate(opened.module, samples, data.task, device, classes)
