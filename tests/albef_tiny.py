"""A tiny ALBEF and batches for it, shared by the tests."""

from __future__ import annotations

import torch

from pelacli.models.albef.config import Config
from pelacli.models.albef.network import Albef

TINY = {
    "image_size": 32, "patch_size": 8, "vision_width": 32, "vision_depth": 2, "vision_heads": 2,
    "vocab_size": 40, "text_width": 32, "text_depth": 4, "text_heads": 2, "text_hidden": 48,
    "max_positions": 16, "fusion_layer": 2, "decoder_depth": 2, "embed_dim": 16,
}  # fmt: skip


def tiny(variant: str = "pretrain", seed: int = 0, **settings: object) -> Albef:
    torch.manual_seed(seed)
    return Albef(Config(**{"variant": variant, **TINY, **settings}))


SIX = {"vision_heads": 6, "text_heads": 6}  # heads of a network that is widened


def widen(network: Albef, vision: int = 12) -> None:
    """Give a network that is to learn a task from nothing a wider start.

    BERT's is made for layers sixteen times as wide. With one that is four or eight times wider, or
    with two heads, texts and images are never compared by the fusion layers.

    Args:
        vision: how much wider the image encoder's is. With 4 its patches tell of themselves.
    """
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1 and "patch_embed" not in name:
            wide = vision if name.startswith("visual") else 12
            parameter.data.mul_(4 if "embed" in name else wide)


def pairs(count: int = 6, length: int = 7, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random images and texts of several lengths; 1 begins and 2 ends a text, 3 hides a word."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 40, (count, length), generator=draw)
    mask = torch.ones_like(ids)
    ids[:, 0] = 1
    for row in range(count):
        end = length - row % 3 - 1
        ids[row, end], ids[row, end + 1 :], mask[row, end + 1 :] = 2, 0, 0
    images = torch.randn(count, 3, 32, 32, generator=draw)
    return {"pixel_values": images, "input_ids": ids, "attention_mask": mask}


def batch(count: int = 6, seed: int = 1) -> dict[str, object]:
    """`pairs` with one hidden word each."""
    inputs = pairs(count, seed=seed)
    masked = inputs["input_ids"].clone()
    labels = torch.full_like(masked, -100)
    labels[:, 2], masked[:, 2] = masked[:, 2].clone(), 3
    return {"inputs": inputs, "masked_ids": masked, "masked_labels": labels}
