"""The paper's recipes at full size: built without memory, or run for one step; shared by tests."""

from __future__ import annotations

import copy
import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pelacli.artefact import loading
from pelacli.lowrank import find
from pelacli.lowrank import replace as lowrank_replace
from pelacli.models import opening
from pelacli.ranks import planner, spectrum
from pelacli.ranks.budget import Budget
from pelacli.ranks.size import ModelSize
from pelacli.recipe import reading
from pelacli.recipe.step import step_of
from pelacli.steps import decompose, pretrain
from pelacli.tasks import registry
from pelacli.train import regularisation
from pelacli.train.healing import Stage

RECIPES = Path(__file__).parents[1] / "recipes"


@functools.cache
def built(name):
    """(recipe, stage) as `pela run` would make them, of weights that have no values."""
    spec = reading.load(RECIPES / f"{name}.toml", [])
    dense = opening.open(spec.model, weights="random", meta=True)
    student = copy.copy(dense)
    student.module = copy.deepcopy(dense.module)
    cut(student, spec)
    section = spec.pretrain
    if section.drop_path is not None:
        regularisation.set_drop_path(student.module, section.drop_path, section.drop_path_rule)
    dense.module.eval().requires_grad_(False)
    task = registry.get(spec.task, spec.task_args)
    return spec, Stage(section, student, dense, task, labelled=True)


def cut(opened, spec):
    """Give a model of a recipe the shapes of its low-rank layers, without values."""
    settings = spec.decompose
    selection = find.Selection(opened.head, settings.include, settings.exclude)
    layers = find.find_dense(opened.module, selection, opened.ref)
    free = find.free_layers(layers, opened.ref)
    plan = planner.plan(
        [spectrum.Spectrum(la.name, la.shape, np.ones(min(la.shape))) for la in free],
        Budget(spec.decompose.policy, spec.decompose.budget, scope=spec.decompose.scope),
        ModelSize(fixed_params=find.fixed_params(opened.module, free)),
    )
    lowrank_replace.replace_empty(opened.module, plan.ranks())


def step(name, settings, model, pela):
    """Decompose, train for one step, save, load and report, with weights and data on the disk.

    Args:
        settings: what a small machine changes of the recipe.
        model: directory of the dense model.

    Returns:
        (the losses by name, the share of the parameters that moved, the row of the report).
    """
    spec = reading.load(RECIPES / f"{name}.toml", [*settings, "pretrain.steps=1"])
    start = decompose.run(replace(step_of(spec, "decompose"), source=str(model))).path
    made = pretrain.run(step_of(spec, "pretrain"))
    assert made.steps == 1
    before, after = (loading.load(path).module for path in (start, made.path))
    moved = [not torch.equal(p, before.get_parameter(name)) for name, p in after.named_parameters()]
    history = json.loads((made.path / "pela.json").read_text())["history"]
    losses = history[-1]["metrics"]["losses"]
    assert all(math.isfinite(value) for value in losses.values())
    code, out, err = pela("report", made.path, "--json")
    assert code == 0, err
    (row,) = json.loads(out)
    return losses, sum(moved) / len(moved), row
