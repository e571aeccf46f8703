"""Which of transformers' architectures are tried: the model types in use, as `AutoModel` builds
them, and the classes with heads that people load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from _shrink import EXCEPTIONS, merged, tiny
from _trial import Case
from torch import Tensor

ARCHITECTURES = Path(__file__).parent / "architectures.txt"


PICTURE = (3, 64, 64)
# What pela can't guess of a sample: its FLOPs are unknown then, and all else must work.
# Type → the batch of one sample for a model of this configuration.
INPUTS: dict[str, Callable[[Any], dict[str, Tensor]]] = {
    "idefics3": lambda c: (
        words(1, c.image_token_id) | {"pixel_values": torch.zeros(1, 1, *PICTURE)}
    ),
    "instructblip": lambda c: (
        words(10, c.image_token_index)
        | {"qformer_input_ids": words()["input_ids"], "pixel_values": torch.zeros(1, 3, 56, 56)}
    ),
    "kosmos-2": lambda c: (
        words(64)
        | {
            "pixel_values": torch.zeros(1, 3, 56, 56),
            "image_embeds_position_mask": (torch.arange(80) < 64).long()[None],
        }
    ),
    "lxmert": lambda c: (
        words()
        | {
            "visual_feats": torch.zeros(1, 10, c.visual_feat_dim),
            "visual_pos": torch.zeros(1, 10, c.visual_pos_dim),
        }
    ),
    "oneformer": lambda c: {
        "pixel_values": torch.zeros(1, *PICTURE),
        "task_inputs": torch.ones(1, c.task_seq_len),
    },
    "vjepa2": lambda c: {"pixel_values_videos": torch.zeros(1, 4, *PICTURE)},
}


def words(images: int = 0, token: int = 7) -> dict[str, Tensor]:
    """A text of sixteen tokens behind the places of an image."""
    ids = torch.cat([torch.full((1, images), token), torch.zeros(1, 16, dtype=torch.long)], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def cases() -> list[Case]:
    """All that `ARCHITECTURES` names."""
    lines = ARCHITECTURES.read_text(encoding="utf-8").splitlines()
    return [case(name) for line in lines for name in line.partition("#")[0].split()]


def case(name: str) -> Case:
    """A model type or class at tiny size."""
    if name in transformers.CONFIG_MAPPING:
        return Case("transformers", name, name, name, lambda: arguments(name), INPUTS.get(name))
    kind = getattr(transformers, name).config_class.model_type
    return Case(
        "transformers", name, kind, kind, lambda: arguments(kind, name) | {"architectures": [name]}
    )


def arguments(kind: str, name: str = "") -> dict[str, Any]:
    """``model_args`` that make a model of this type tiny."""
    small = merged(tiny(transformers.AutoConfig.for_model(kind)), EXCEPTIONS.get(kind, {}))
    return merged(small, EXCEPTIONS.get(name, {}))
