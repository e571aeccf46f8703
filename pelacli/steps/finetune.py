"""Train a model on a task: the recipe's result, or ([teacher]) the dense model it starts from."""

from __future__ import annotations

from torch import Tensor, nn

from pelacli import console
from pelacli.artefact import changes, description, loading, saving
from pelacli.artefact.loading import Artefact
from pelacli.data.loader import Batch
from pelacli.errors import RequestError
from pelacli.lowrank import find
from pelacli.manifest import lookup
from pelacli.manifest.document import Manifest
from pelacli.models.opened import OpenModel
from pelacli.recipe import layout, schema
from pelacli.recipe.schema import Recipe, Train
from pelacli.steps import training
from pelacli.steps.training import Outcome
from pelacli.tasks import base, registry
from pelacli.train import loop, regularisation, splits
from pelacli.train import run as train_run


def run(spec: Recipe, section_name: str = "finetune", *, resume: bool = False) -> Outcome:
    """Train by the section of this name ("finetune" or "teacher") and write the artefact."""
    section: Train | None = getattr(spec, section_name)
    if section is None:
        raise RequestError(f"the recipe has no [{section_name}] section")
    output = layout.folder(spec, section_name)
    saving.check_output(output)
    source = lookup.require(layout.source(spec, section_name), section_name)
    opened, before = loading.open(source, **lookup.how_to_open(spec, source))
    if before is None:
        layers = find.find_layers(opened.module, head=opened.head)
        before = description.describe(opened, layers, description.cost(opened, layers))
    opened, before = fit(opened, before, spec, section)
    data = splits.Splits.open(spec, section, opened)
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
        training.workplace(spec, section_name, source, opened, output) as work,
        console.progress(section_name, train_run.updates(section, len(data.train))) as bar,
    ):
        result = loop.fit(
            opened.module,
            losses,
            data.train,
            section,
            seed=spec.seed,
            output=work,
            evaluate=evaluate,
            main_metric=task.MAIN,
            no_weight_decay=regularisation.no_decay(opened.module),
            resume=resume,
            device=spec.device,
            progress=bar,
        )
    return training.finish(
        spec, section_name, Artefact(opened, before), source, output, work, result
    )


def fit(
    opened: OpenModel, before: Manifest, spec: Recipe, section: Train
) -> tuple[OpenModel, Manifest]:
    """The model as its task wants it, and its record: the same layers under the names that they
    have there."""
    data = section.data or spec.data
    if data is None:
        raise RequestError("the recipe has no [data] section")
    task = registry.get(*schema.task_of(spec, section))
    places = find.linear_modules(opened.module)
    dataset = task.open(data, data.train, inputs=opened.inputs)
    fitted = task.fit(opened, dataset, spec.num_classes, spec.seed)
    return fitted, changes.relocated(fitted, before, places)
