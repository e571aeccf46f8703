"""Train a model on a task: the recipe's result, or ([teacher]) the dense model it starts from."""

from __future__ import annotations

from torch import Tensor, nn

from pelacli import console
from pelacli.artefact import changes, description, loading, saving
from pelacli.artefact.loading import Artefact
from pelacli.data.loader import Batch
from pelacli.lowrank import find
from pelacli.manifest import lookup
from pelacli.manifest.document import Manifest
from pelacli.models.opened import OpenModel
from pelacli.recipe.schema import Train
from pelacli.recipe.step import Step
from pelacli.steps import training
from pelacli.steps.training import Outcome
from pelacli.tasks import base, registry
from pelacli.train import loop, regularisation, splits
from pelacli.train import run as train_run


def run(step: Step[Train], *, resume: bool = False) -> Outcome:
    """Train the step's source and write the artefact."""
    section = step.settings
    saving.check_output(step.output)
    source = lookup.require(step.source, step.name)
    opened, before = loading.open(source, **lookup.how_to_open(source, step.opening))
    if before is None:
        layers = find.find_layers(opened.module, head=opened.head)
        before = description.describe(opened, layers, description.cost(opened, layers))
    opened, before = fit(opened, before, step)
    data = splits.Splits.open(step, opened)
    if section.drop_path is not None:
        regularisation.set_drop_path(opened.module, section.drop_path, section.drop_path_rule)
    task = data.task

    def losses(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return base.losses(task, task.forward(module, batch), batch)

    def evaluate(module: nn.Module) -> dict[str, float]:
        if data.validation is None:
            return {}
        device = next(module.parameters()).device
        return base.evaluate(module, data.validation, task, device, data.num_classes)

    with (
        task.training(opened.module),
        training.workplace(step, opened) as work,
        console.progress(step.name, train_run.updates(section, len(data.train))) as bar,
    ):
        result = loop.fit(
            opened.module,
            losses,
            data.train,
            section,
            seed=step.seed,
            output=work,
            evaluate=evaluate,
            main_metric=task.MAIN,
            no_weight_decay=regularisation.no_decay(opened.module),
            resume=resume,
            device=step.device,
            progress=bar,
        )
    return training.finish(step, Artefact(opened, before), work, result)


def fit(opened: OpenModel, before: Manifest, step: Step[Train]) -> tuple[OpenModel, Manifest]:
    """The model as its task wants it, and its manifest: the same layers under the names that they
    have there."""
    assert step.data is not None  # the recipe's validation has seen to it
    task = registry.get(step.task.name, step.task.settings)
    layers = find.linear_modules(opened.module)
    dataset = task.open(step.data, step.data.train, inputs=opened.inputs)
    fitted = task.fit(opened, dataset, step.opening.num_classes, step.seed)
    return fitted, changes.relocated(fitted, before, layers)
