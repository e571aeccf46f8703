"""The paper's recipes, built at full size on the meta device: shapes without memory."""

from __future__ import annotations

import contextlib
import copy
import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from pelacli import engine, lowrank, models, optim, ranks, recipe_file, tasks
from pelacli.steps import decompose
from pelacli.steps.pretrain import Stage

ROOT = Path(__file__).parents[1] / "recipes" / "imagenet"
# parameters before and after, blocks, factorised layers, a dense layer that decays;
# batch, epochs, lr, weight decay, largest drop-path and how it is spread (the paper's script)
WANTED = {
    "deit_base": (86_567_656, 44_081_896, 12, 48, "head", 256, 50, 6.25e-5, 0.05, 0.1, "linear"),
    "deit3_large": (304_374_760, 153_232_360, 24, 96, "head", 64, 20, 3.125e-5, 0.1, 0.45, "all"),
    "swin_base": (
        87_768_224, 62_164_128, 24, 72, "layers.0.blocks.0.attn.proj",
        256, 50, 1.25e-5, 0.05, 0.5, "linear",
    ),
}  # fmt: skip


def test_there_is_one_for_each_model_of_the_paper():
    assert {path.stem for path in ROOT.glob("*.toml")} == set(WANTED)


@functools.cache
def built(name):
    """(recipe, stage) as `pela run` would make them, of weights that have no values."""
    spec = recipe_file.load(ROOT / f"{name}.toml", [])
    dense = models.open(spec.model, weights="random", meta=True)
    student = copy.copy(dense)
    student.module = copy.deepcopy(dense.module)
    layers = decompose.find(student, spec.decompose)
    free = [layer for layer in layers if layer.reason is None]
    plan = ranks.plan(
        [ranks.Spectrum(la.name, la.shape, np.ones(min(la.shape))) for la in free],
        policy=spec.decompose.policy,
        ratio=spec.decompose.budget,
        scope=spec.decompose.scope,
        fixed_params=engine.fixed_params(student.module, free),
    )
    lowrank.replace_empty(student.module, plan.ranks())
    section = spec.pretrain
    models.set_drop_path(student.module, section.drop_path, section.drop_path_rule)
    dense.module.eval().requires_grad_(False)
    task = tasks.get(spec.task)
    return spec, Stage(section, student, dense, task, labelled=True)


@pytest.mark.parametrize("name", WANTED)
def test_the_model_is_the_papers(name):
    before, after, blocks, factorised, dense, *_ = WANTED[name]
    _, stage = built(name)
    assert (stage.teacher.params, stage.student.params) == (before, after)
    assert len(stage.taps) == blocks
    assert all(".blocks." in f".{tap}" for tap in stage.taps)
    assert len(stage.layers) == factorised
    teacher = stage.teacher.module
    for layer in stage.layers:
        weight = teacher.get_submodule(layer).weight
        assert isinstance(stage.student.module.get_submodule(layer), lowrank.LowRankLinear)
        assert stage.student.module.get_submodule(layer).weight.shape == weight.shape
        assert not weight.requires_grad
    assert isinstance(stage.student.module.get_submodule(dense), torch.nn.Linear)


@pytest.mark.parametrize("name", WANTED)
def test_the_settings_are_the_papers(name):
    *_, batch, epochs, lr, decay, drop, rule = WANTED[name]
    spec, stage = built(name)
    section = spec.pretrain
    assert (spec.data.batch_size, section.epochs, section.lr) == (batch, epochs, lr)
    assert (section.weight_decay, section.loss.feature, section.loss.task) == (decay, 1.0, 1.0)
    rates = [getattr(m, "drop_prob", 0.0) for n, m in stage.student.module.named_modules()
             if "drop_path" in n]  # fmt: skip
    assert max(rates) == rates[-1] == drop
    assert rates[0] == (0.0 if rule == "linear" else drop)


@pytest.mark.parametrize("name", WANTED)
def test_what_decays_is_the_matrices(name):
    spec, stage = built(name)
    module = stage.student.module
    made = optim.optimizer(module, spec.pretrain, models.no_decay(module))
    names = {id(p): n for n, p in module.named_parameters()}
    decayed = {names[id(p)] for g in made.param_groups if g["weight_decay"] for p in g["params"]}
    for parameter in names.values():
        table = "pos_embed" in parameter or "relative_position" in parameter
        matrix = parameter.endswith("weight") and "norm" not in parameter
        assert (parameter in decayed) == (matrix and not table), parameter
    factors = sum(n.endswith(("down.weight", "up.weight")) for n in decayed)
    assert factors == 2 * len(stage.layers)


@pytest.mark.parametrize("name", WANTED)
def test_a_step_at_full_size_reaches_every_weight(name, monkeypatch):
    # torch knows no autocast of the meta device, not even to switch it off
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    _, stage = built(name)
    module = stage.student.module.train()
    module.zero_grad()
    batch = {"inputs": torch.empty(2, 3, 224, 224, device="meta"),
             "labels": torch.empty(2, 1000, device="meta")}  # fmt: skip
    named = stage.losses(module, batch)
    assert set(named) == {"task", "feature", "perturbation"}
    torch.stack(list(named.values())).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert all(p.grad is None for p in stage.teacher.module.parameters())
