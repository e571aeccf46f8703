"""The paper's recipes at full size: built on the meta device, and one real step of each."""

from __future__ import annotations

import contextlib

import numpy as np
import paper_recipes
import pytest
import torch
from PIL import Image

import pelacli
from pelacli.lowrank import linear
from pelacli.models import opening
from pelacli.train import optim

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
# GFLOPs of an image before and after, by the formulas of the paper's ranks (2 per multiply-add)
GFLOPS = {"deit_base": (35.128, 18.388), "deit3_large": (123.109, 63.559),
          "swin_base": (30.862, 21.808)}  # fmt: skip


def test_there_is_one_for_each_model_of_the_paper():
    assert {path.stem for path in (paper_recipes.RECIPES / "imagenet").glob("*.toml")} == set(
        WANTED
    )


def built(name):
    return paper_recipes.built(f"imagenet/{name}")


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
        assert isinstance(stage.student.module.get_submodule(layer), linear.LowRankLinear)
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
    made = optim.optimizer(module, spec.pretrain)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", WANTED)
def test_a_real_step_at_full_size(name, here, pela):
    """Values, not only shapes: every weight that has a gradient moves, and what is written loads.
    Memory: 8 GiB for DeiT-III-L."""
    images(here / "data")
    dense = opening.open(built(name)[0].model, weights="random").module
    pelacli.save(dense, here / "dense")
    del dense
    settings = ["model=dense", "output=runs", "data.dataset=hfds/data", "data.workers=0",
                "data.batch_size=2", "data.augment.repeats=1", "pretrain.precision=no",
                "pretrain.warmup_epochs=0"]  # fmt: skip
    losses, moved, row = paper_recipes.step(f"imagenet/{name}", settings, "dense", pela)
    assert losses.keys() == {"loss", "task", "feature", "perturbation"}
    # With stochastic depth a step may pass a block by; in two images seldom most of them.
    assert moved > 0.5
    before, after, *_ = WANTED[name]
    assert row["params"] == {"before": before, "after": after}
    flops = tuple(round(row["flops"][which] / 1e9, 3) for which in ("before", "after"))
    assert flops == GFLOPS[name]


def images(folder):
    """A dataset of a thousand classes, two images to train on and two to validate."""
    import datasets

    form = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=[f"class {number}" for number in range(1000)]),
    )
    draw = np.random.default_rng(0)
    folder.mkdir()
    for split in ("train", "validation"):
        pixels = draw.integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
        rows = {"image": [Image.fromarray(one) for one in pixels], "label": [3, 977]}
        datasets.Dataset.from_dict(rows, form).to_parquet(folder / f"{split}.parquet")
