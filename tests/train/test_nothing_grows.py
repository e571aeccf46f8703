"""A training run holds no more after many steps than after a few, whatever it trains."""

from __future__ import annotations

import gc

import pytest
import torch
from generated_text import WORDS, save_model
from tiny_healing import TINY
from watched_progress import watch

from pelacli.recipe.schema import Recipe
from pelacli.steps import pipeline


def of_text(family, kind, task, folder):
    lines = [" ".join(WORDS[(7 * i + j) % 48] for j in range(6)) for i in range(120)]
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    model = save_model(family, kind, folder / "model")
    return {"model": str(model), "task": task, "data": {"dataset": str(folder / "train.txt")}}


def of_images(folder):
    top = {"model": "vit_tiny_patch16_224", "weights": "random", "model_args": TINY}
    return top | {"num_classes": 10, "data": {"dataset": "digits", "augment": {"none": True}}}


SUBJECTS = {
    "an encoder with a pooler": lambda f: of_text("bert", "", "sentence-embedding", f),
    "a language model": lambda f: of_text("llama", "CausalLM", "language-modelling", f),
    "a masked one": lambda f: of_text("bert", "MaskedLM", "language-modelling", f),
    "a vision model": of_images,
}


def living_tensors():
    gc.collect()
    return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_number_of_living_tensors_stays(subject, tmp_path, monkeypatch):
    document = SUBJECTS[subject](tmp_path) | {"output": str(tmp_path / "run")}
    document["data"] |= {"batch_size": 8}
    document["decompose"] = {"ratio": 0.6, "scope": "layers"}
    healing = {"steps": 12, "epochs": 99, "lr": 1e-5, "labels": False, "eval_every": None}
    living = []

    watch(monkeypatch, lambda _: living.append(living_tensors()), "pretrain")
    pipeline.run(Recipe.model_validate(document | {"pretrain": healing}))
    assert len(living) > 10
    assert living[-1] <= living[5]
