"""The loaders of a training step: training and validation data for a model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

from torch.utils.data import IterableDataset

from pelacli.console import info_once, warn_once
from pelacli.data.dataset import Dataset
from pelacli.data.held_out import divided
from pelacli.data.loader import Loader, loader
from pelacli.errors import RequestError
from pelacli.models.heads import num_classes
from pelacli.models.opened import OpenModel
from pelacli.recipe.data import Data
from pelacli.recipe.step import Step
from pelacli.recipe.training import Pretrain, Train
from pelacli.tasks import registry
from pelacli.tasks.base import Base
from pelacli.tasks.common.labels import open_with_or_without
from pelacli.train import passed_over

# Calibration goes through the samples in the order of the recipe's seed. Healing takes another, or
# it would begin with the samples that the student was fitted to.
_AFTER_CALIBRATION = 1
_LEAST_JUDGED, _MOST_JUDGED = 64, 1024  # samples of an evaluation by the teacher alone


@dataclass(frozen=True)
class Splits:
    """The loaders of a training step; ``validation`` is None where there is nothing to judge by.

    Attributes:
        num_classes: of the model; None where it is no classifier.
        labelled: whether training has labels.
        judged: whether validation has labels.
    """

    task: Base
    train: Loader
    validation: Loader | None
    num_classes: int | None
    labelled: bool
    judged: bool


def open_splits(step: Step[Train], opened: OpenModel, *, labelled: bool | None = True) -> Splits:
    """Open a step's training and validation data for a model.

    Where the data of a healing step has no splits, a tenth of it is held out to judge by; and where
    its teacher judges alone, few samples will do.

    Args:
        labelled: whether to use labels; None: where the data has them and the model an output for
            each class: as many as there are, or as the recipe's [teacher] was given.

    Raises:
        RequestError: the data can't be used, or labels are asked for and there are none.
    """
    data = step.data
    assert data is not None  # the recipe's validation has seen to it
    task = registry.get(step.task.name, step.task.settings)
    training, labelled = _open_training(task, step, opened, labelled)
    passed_over.say(step, opened, labelled)
    heals = isinstance(step.settings, Pretrain)
    validation, judged = None, labelled
    if training.split is not None:
        validation, judged = _open_validation(task, data, opened, labelled)
    elif heals:
        training, validation = _hold_out(task, step, opened, training)
    classes = num_classes(opened)
    batches = partial(
        loader,
        batch_size=step.settings.batch_size or data.batch_size,
        workers=data.workers,
    )
    held_out = None
    if validation is not None:
        shuffle, limit = _few(step, training) if heals and not judged else (False, None)
        held_out = batches(
            validation,
            num_classes=classes if judged else None,
            seed=step.seed,
            shuffle=shuffle,
            limit=limit,
            skips_bad=data.skips_bad and training.split is None,  # then they are training's own
        )
    train = batches(
        training,
        seed=step.seed + (_AFTER_CALIBRATION if heals else 0),
        shuffle=True,
        drop_last=True,
        num_classes=classes if labelled else None,
        augment=data.augment,
        skips_bad=data.skips_bad,
    )
    return Splits(task, train, held_out, classes, labelled, judged)


def _open_training(
    task: Base, step: Step[Train], opened: OpenModel, labelled: bool | None
) -> tuple[Dataset, bool]:
    """(the training split, whether it has labels that are used)."""
    data = step.data
    assert data is not None  # the recipe's validation has seen to it

    def open_split(unlabelled: bool) -> Dataset:
        return task.open(
            data, data.train, inputs=opened.inputs, training=True, unlabelled=unlabelled
        )

    if not task.LABELLED or (labelled is None and not task.fits(opened)):
        labelled = False  # nor need the data have any
    if labelled is not None:
        dataset = open_split(unlabelled=not labelled)
    else:
        dataset = open_with_or_without(open_split)
        labelled = dataset.labelled and _has_outputs(opened, dataset, step)
        if not labelled:
            dataset = open_split(unlabelled=True)
    if labelled and not task.fits(opened):
        raise RequestError(
            f"{opened.ref}: gives no output that the task could learn from; heal it without "
            "labels (pretrain.labels = false), or with the task that it has"
        )
    return dataset, labelled


def _hold_out(
    task: Base, step: Step[Train], opened: OpenModel, training: Dataset
) -> tuple[Dataset, Dataset | None]:
    """(what is left to train on, what is held out of data without splits)."""
    data = step.data
    assert data is not None  # the recipe's validation has seen to it
    judged = task.open(data, data.train, inputs=opened.inputs, unlabelled=not training.labelled)
    parts = divided(training, judged, step.seed)
    if parts is None:
        warn_once(
            f"too few of {data.dataset}",
            f"{data.dataset}: too few samples to hold some out, or none can be chosen, so nothing "
            "says whether healing helps; name a validation split",
        )
        return training, None
    info_once(
        f"held out of {data.dataset}",
        f"{data.dataset}: {len(parts[1])} of {len(training)} samples are held out, to see whether "
        "healing helps",
    )
    return cast(Dataset, parts[0]), cast(Dataset, parts[1])


def _few(step: Step[Train], training: Dataset) -> tuple[bool, int | None]:
    """(whether some are chosen, how many): what of the validation split says often enough how far
    the student is from its teacher. It is a tenth of what the run trains on, always the same."""
    if isinstance(training.source, IterableDataset):  # nothing can be chosen of a stream
        return False, None
    size = step.settings.batch_size or (step.data.batch_size if step.data else 1)
    samples = len(training) * step.settings.epochs
    if step.settings.steps is not None:
        samples = min(samples, step.settings.steps * step.settings.accumulate * size)
    most = min(_MOST_JUDGED, max(_LEAST_JUDGED, samples / 10))
    return True, int(most)


def _has_outputs(opened: OpenModel, dataset: Dataset, step: Step[Train]) -> bool:
    """Whether the model has an output for each class of the data.

    A model with more outputs than the data has classes may have been made for other data, so it
    does not count, unless the recipe itself trains the dense model ([teacher]) with that
    ``num_classes``.
    """
    count = num_classes(opened)
    if dataset.classes is None or len(dataset.classes) == count:
        return True
    is_trained_by_recipe = step.dense != step.model
    return (
        is_trained_by_recipe
        and count is not None
        and count == step.opening.num_classes
        and len(dataset.classes) < count
    )


def _open_validation(
    task: Base, data: Data, opened: OpenModel, labelled: bool
) -> tuple[Dataset, bool]:
    """(the validation split, whether it has labels that are used)."""
    unlabelled = not labelled and not task.JUDGES_LABEL_FREE
    dataset = task.open(data, data.val, inputs=opened.inputs, unlabelled=unlabelled)
    return dataset, not unlabelled and dataset.labelled
