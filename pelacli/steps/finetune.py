"""Train a model on a task: the recipe's result, or ([teacher]) the dense model it starts from."""

from __future__ import annotations

from torch import Tensor, nn

from pelacli import console
from pelacli.artefact import changes, description, loading, saving
from pelacli.artefact.loading import Artefact
from pelacli.data.dataset import Dataset
from pelacli.data.loader import Batch
from pelacli.lowrank import find
from pelacli.manifest import lookup
from pelacli.models import precision
from pelacli.models.opened import OpenModel
from pelacli.recipe.step import Step
from pelacli.recipe.training import Train
from pelacli.steps import training
from pelacli.steps.training import Outcome
from pelacli.system import processes
from pelacli.tasks import base, registry
from pelacli.tasks.base import Base
from pelacli.train.criterion import Criterion
from pelacli.train.loop import Objective
from pelacli.train.splits import Splits, open_splits


def run(step: Step[Train], *, resume: bool = False) -> Outcome:
    """Train the step's model on its task and write the artefact."""
    saving.check_output(step.output, step.source)
    processes.meet(step.device)
    model = _fit(step, _open(step))
    data = open_splits(step, model.opened)
    return training.train(step, model, data, _objective(data), resume=resume)


def _open(step: Step[Train]) -> Artefact:
    """The step's model. One that is no artefact gets the manifest of a dense model."""
    source = lookup.require(step.source, step.name)
    with console.file_progress(f"opening {source}"):
        opened, manifest = loading.open(source, **lookup.how_to_open(source, step.opening))
    if manifest is None:
        layers = find.find_layers(opened.module, head=opened.head)
        manifest = description.describe(opened, layers, description.cost(opened, layers))
    return Artefact(opened, manifest)


def _fit(step: Step[Train], model: Artefact) -> Artefact:
    """The model as its task trains it, around a backbone or with another head. The manifest follows
    the layers to their new names."""
    layers = find.linear_modules(model.module)
    fitted_model = fitted(step, model.opened, dataset_of(step, model.opened))
    precision.carry_over(model.opened, fitted_model)
    return Artefact(fitted_model, changes.relocated(fitted_model, model.manifest, layers))


def task_of(step: Step[Train]) -> Base:
    """The step's task with its settings.

    Raises:
        RequestError: there is no such task, or no such setting of it.
    """
    return registry.get(step.task.name, step.task.settings)


def dataset_of(step: Step[Train], opened: OpenModel) -> Dataset:
    """The training split, by whose classes the model gets its head.

    Raises:
        RequestError: it can't be opened, or the model does not take its samples.
    """
    assert step.data is not None  # the recipe's validation has seen to it
    return task_of(step).open(step.data, step.data.train, inputs=opened.inputs)


def fitted(step: Step[Train], opened: OpenModel, dataset: Dataset) -> OpenModel:
    """The model with what its task needs, as `pelacli.tasks.base.Base.fit` gives it.

    Raises:
        RequestError: the task can't be built around this model, or not for this dataset.
    """
    return task_of(step).fit(opened, dataset, step.opening.num_classes, step.seed)


def _objective(data: Splits) -> Objective:
    """The task's losses, judged by its metrics."""
    task = data.task

    def losses(module: nn.Module, batch: Batch, done: float) -> dict[str, Tensor]:
        return base.losses(task, task.forward(module, batch), batch)

    def evaluate(module: nn.Module) -> dict[str, float]:
        if data.validation is None:
            return {}
        device = next(module.parameters()).device
        return base.evaluate(module, data.validation, task, device, data.num_classes)

    return Objective(losses, evaluate, Criterion(larger=(task.MAIN,) if task.MAIN else ()))
