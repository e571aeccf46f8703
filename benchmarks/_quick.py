"""A model for quick runs, to see that everything runs."""

from __future__ import annotations

from pathlib import Path

import pelacli
from pelacli.models import opening

TINY = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 2}


def tiny_backbone(folder: Path) -> Path:
    """A tiny headless image model of random weights, saved as a directory."""
    backbone = opening.open(
        "vit_tiny_patch16_224", weights="random", model_args=TINY, num_classes=0
    )
    pelacli.save(backbone.module, folder)
    return folder
