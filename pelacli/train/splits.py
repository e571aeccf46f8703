"""The loaders of a training step: training and validation data for a model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from pelacli.data.dataset import Dataset
from pelacli.data.loader import Loader, loader
from pelacli.errors import RequestError
from pelacli.models.heads import num_classes
from pelacli.models.opened import OpenModel
from pelacli.recipe.data import Data
from pelacli.recipe.step import Step
from pelacli.recipe.training import Train
from pelacli.tasks import registry
from pelacli.tasks.base import Base
from pelacli.tasks.common.labels import open_with_or_without
from pelacli.train import passed_over


@dataclass(frozen=True)
class Splits:
    """The loaders of a training step; ``validation`` is None where the data has no splits.

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
    validation, judged = None, labelled
    if training.split is not None:
        validation, judged = _open_validation(task, data, opened, labelled)
    classes = num_classes(opened)
    batches = partial(
        loader,
        batch_size=step.settings.batch_size or data.batch_size,
        seed=step.seed,
        workers=data.workers,
    )
    held_out = None
    if validation is not None:
        held_out = batches(validation, num_classes=classes if judged else None)
    train = batches(
        training,
        shuffle=True,
        drop_last=True,
        num_classes=classes if labelled else None,
        augment=data.augment,
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
