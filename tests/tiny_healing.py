"""A tiny ViT that is decomposed and can be healed in a second, and plain images to do it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pelacli.recipe import schema
from pelacli.recipe.schema import Recipe
from pelacli.recipe.step import step_of
from pelacli.steps import decompose

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def decomposed(
    folder: Path, data: str | Path = "digits", ratio: str = "0.6", **pretrain: Any
) -> Recipe:
    """A recipe whose [decompose] is done. Healing takes ten steps without labels, unless the
    section ``pretrain`` says otherwise."""
    document = {
        "model": "vit_tiny_patch16_224", "weights": "random", "model_args": TINY,
        "num_classes": 10, "output": str(folder / "run"),
        "data": {"dataset": str(data), "batch_size": 16, "augment": {"none": True}},
        "decompose": {"ratio": ratio, "calibrate": "train", "samples": 64},
        "pretrain": {"steps": 10, "labels": False, **pretrain},
    }  # fmt: skip
    made = schema.Recipe.model_validate(document)
    decompose.run(step_of(made, "decompose"))
    return made


def plain_images(folder: Path, count: int) -> Path:
    """A folder of images without splits or labels."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        pixels = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder
