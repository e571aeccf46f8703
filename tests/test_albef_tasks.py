"""ALBEF through the tasks: from the low-rank pre-training model to each of its variants, with
momentum copies while it trains and none afterwards."""

from __future__ import annotations

import json

import pair_world as world
import pytest

from pelacli import artefact, lowrank

RECIPE = """
model = "m"
output = "run"
task = "{task}"

[task_args]
{args}

[data]
dataset = "data"
batch_size = 12
image_size = {size}

[data.augment]
scale = [0.5, 1.0]
color_jitter = 0.0
auto_augment = "rand-m7-n2-p0.9"

[decompose]
ratio = "1/2"
scope = "layers"
{calibrate}

[finetune]
epochs = 10
eval_every = 100
steps = {steps}
lr = 2e-3
log_every = 1

[eval]
latency = false
"""
TASKS = {
    "retrieval": ("queue = 48\nk_test = 5", world.captions, "mean_r"),
    "vqa": ('answers = "answers.json"\nk_test = 4', world.questions, "vqa_accuracy"),
    "entailment": ("ramp = 0.0", world.claims, "accuracy"),
    "grounding": ('queue = 48\nlayer = 3\nboxes = "data/dets.json"', world.referring, "accuracy"),
}


@pytest.mark.parametrize("task", TASKS)
def test_the_low_rank_model_is_fine_tuned_for_each_task(pela, here, task):
    args, make, metric = TASKS[task]
    world.albef(here / "m", "pretrain")
    make(here / "data", 24 if task == "grounding" else 1)
    make(here / "data", 24 if task == "grounding" else 1, name="val")
    (here / "answers.json").write_text(json.dumps(world.ANSWERS))
    steps = 40 if task == "entailment" else 12
    larger = task == "entailment"  # fine-tuned at more pixels than it was pre-trained at
    text = RECIPE.format(
        task=task,
        args=args,
        size=48 if larger else 32,
        steps=steps,
        calibrate="" if larger else 'calibrate = "train"\nsamples = 24',
    )
    (here / "r.toml").write_text(text)
    code, _, err = pela("run", "r.toml", "--json")
    assert code == 0, err
    before, after = (artefact.load(here / "run" / step) for step in ("decompose", "finetune"))
    config = after.opened.config
    assert config["variant"] == ("retrieval" if task == "grounding" else task)
    assert config["image_size"] == (48 if larger else 32)
    # Every low-rank layer is where it was; VQA's decoder has copies of those that see the image.
    ranks = {row.name: row.rank for row in before.manifest.layers if row.rank is not None}
    low = lowrank.low_rank_layers(after.module)
    assert set(ranks) <= set(low)
    assert all(after.module.get_submodule(name).rank == rank for name, rank in ranks.items())
    assert (len(low) > len(ranks)) == (task == "vqa")
    assert not any("momentum" in name for name, _ in after.module.named_parameters())
    lines = [json.loads(line) for line in (here / "run/finetune/metrics.jsonl").open()]
    losses = [row["loss"] for row in lines if "loss" in row]
    assert len(losses) == steps
    assert sum(losses[-3:]) < sum(losses[:3])
    figure = [row["metrics"][metric] for row in lines if metric in row.get("metrics", {})]
    assert figure
    assert 0 <= figure[-1] <= 100
