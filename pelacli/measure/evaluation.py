"""A model's figures on a dataset: what the steps that measure have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pelacli import console
from pelacli.data.loader import Loader, loader
from pelacli.errors import RequestError
from pelacli.models import heads, inputs
from pelacli.models.opened import OpenModel
from pelacli.recipe.schema import Data
from pelacli.tasks import base, registry


def samples(
    opened: OpenModel,
    data: Data,
    task: str | None = None,
    split: str | None = None,
    batch_size: int | None = None,
    task_args: Mapping[str, Any] | None = None,
) -> tuple[Loader, base.Base, bool]:
    """The samples, the task, and whether the samples have labels that fit the model.

    Args:
        task: its name; None takes classification, of images or of texts, where there are labels
            for it.
    """
    classes = heads.num_classes(opened)
    kind = "text" if isinstance(opened.inputs, inputs.TextInput) else "image"
    chosen = registry.get(
        task or (f"{kind}-classification" if classes else "unlabelled"), task_args
    )
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
    opened: OpenModel, samples: Loader, task: base.Base, labelled: bool, place: torch.device
) -> dict[str, float]:
    """The task's metrics; empty where there are no labels. The model moves to the device."""
    if not labelled:
        return {}
    opened.module.to(place)
    with console.progress(f"evaluating {opened.ref}"):
        return base.evaluate(opened.module, samples, task, place, heads.num_classes(opened))
