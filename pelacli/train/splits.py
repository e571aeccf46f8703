"""The loaders of a training section: training and validation data for a model."""

from __future__ import annotations

from dataclasses import dataclass

from pelacli.data.loader import Loader, loader
from pelacli.errors import RequestError
from pelacli.models.heads import num_classes
from pelacli.models.opened import OpenModel
from pelacli.recipe.schema import Train
from pelacli.recipe.step import Step
from pelacli.tasks import registry
from pelacli.tasks.base import Base


@dataclass
class Splits:
    """The loaders of a training section; ``validation`` is None where the data has no splits.

    Attributes:
        labelled: whether training has labels, and ``judged`` whether validation has.
    """

    task: Base
    train: Loader
    validation: Loader | None
    num_classes: int | None
    labelled: bool
    judged: bool

    @classmethod
    def open(cls, step: Step[Train], opened: OpenModel, *, labelled: bool | None = True) -> Splits:
        """Open train and validation data for a model.

        Args:
            labelled: whether to use labels; None means where the data has them and the model an
                output for each.

        Raises:
            RequestError: the data can't be used, or labels are wanted and there are none.
        """
        data = step.data
        assert data is not None  # the recipe's validation has seen to it
        task = registry.get(step.task.name, step.task.settings)
        if not task.LABELLED:
            labelled = False
        classes = num_classes(opened)
        train = task.open(
            data, data.train, inputs=opened.inputs, training=True, unlabelled=labelled is False
        )
        if labelled is None:
            labelled = train.labelled and (train.classes is None or len(train.classes) == classes)
            labelled = labelled and task.fits(opened)
            if not labelled:
                train = task.open(
                    data, data.train, inputs=opened.inputs, training=True, unlabelled=True
                )
        if labelled and not task.fits(opened):
            raise RequestError(
                f"{opened.ref}: gives no output that the task could learn from; heal it without "
                "labels (pretrain.labels = false), or with the task that it has"
            )
        size = step.settings.batch_size or data.batch_size
        validation, judged = None, labelled
        if train.split is not None:
            plain = not labelled and not task.JUDGES_LABEL_FREE
            held_out = task.open(data, data.val, inputs=opened.inputs, unlabelled=plain)
            judged = not plain and held_out.labelled
            validation = loader(
                held_out,
                batch_size=size,
                seed=step.seed,
                workers=data.workers,
                num_classes=classes if judged else None,
            )
        return cls(
            task,
            loader(
                train,
                batch_size=size,
                seed=step.seed,
                shuffle=True,
                drop_last=True,
                workers=data.workers,
                num_classes=classes if labelled else None,
                augment=data.augment,
            ),
            validation,
            classes,
            labelled,
            judged,
        )
