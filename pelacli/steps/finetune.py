"""Train a model on a task: the recipe's result, or ([teacher]) the dense model it starts from."""

from __future__ import annotations

from torch import Tensor, nn

from pelacli import (
    artefact,
    console,
    lowrank,
    models,
    recipe,
    record,
    rundir,
    tasks,
    train,
    trained,
)
from pelacli.artefact import Artefact
from pelacli.data import Batch
from pelacli.errors import RequestError
from pelacli.manifest import Manifest
from pelacli.models import OpenModel
from pelacli.recipe import Recipe, Train
from pelacli.trained import Outcome


def run(spec: Recipe, section_name: str = "finetune", *, resume: bool = False) -> Outcome:
    """Train by the section of this name ("finetune" or "teacher") and write the artefact."""
    section: Train | None = getattr(spec, section_name)
    if section is None:
        raise RequestError(f"the recipe has no [{section_name}] section")
    output = rundir.folder(spec, section_name)
    artefact.check_output(output)
    source = rundir.require(rundir.source(spec, section_name), section_name)
    opened, before = artefact.open(source, **rundir.how_to_open(spec, source))
    if before is None:
        layers = lowrank.find_layers(opened.module, head=opened.head)
        before = record.describe(opened, layers, record.cost(opened, layers))
    opened, before = fit(opened, before, spec, section)
    data = trained.Splits.open(spec, section, opened)
    if section.drop_path is not None:
        models.set_drop_path(opened.module, section.drop_path, section.drop_path_rule)
    task = data.task

    def losses(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return tasks.losses(task, task.forward(module, batch), batch)

    def evaluate(module: nn.Module) -> dict[str, float]:
        if data.validation is None:
            return {}
        device = next(module.parameters()).device
        return tasks.evaluate(module, data.validation, task, device, data.num_classes)

    with (
        task.training(opened.module),
        trained.workplace(spec, section_name, source, opened, output) as work,
        console.progress(section_name, train.updates(section, len(data.train))) as bar,
    ):
        result = train.fit(
            opened.module,
            losses,
            data.train,
            section,
            seed=spec.seed,
            output=work,
            evaluate=evaluate,
            main_metric=task.MAIN,
            no_weight_decay=models.no_decay(opened.module),
            resume=resume,
            device=spec.device,
            progress=bar,
        )
    return trained.finish(
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
    task = tasks.get(*recipe.task_of(spec, section))
    places = lowrank.places(opened.module)
    dataset = task.open(data, data.train, inputs=opened.inputs)
    fitted = task.fit(opened, dataset, spec.num_classes, spec.seed)
    return fitted, record.moved(fitted, before, places)
