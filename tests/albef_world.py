"""Drawn shapes with captions, and directories of ALBEF models that read them; shared by tests."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from albef_tiny import SIX, widen
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import nn

from pelacli.models.albef.config import Config
from pelacli.models.albef.network import Albef

COLOURS = {
    "red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220),
    "yellow": (230, 210, 40), "white": (240, 240, 240), "black": (15, 15, 15),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "bar")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = [*SPECIAL, "a", "on", *COLOURS, *SHAPES]


def draw(folder: Path, split: str, count: int, seed: int, size: int = 32) -> None:
    """``split``.json and its images: one of 120 scenes each, "a red circle on blue"."""
    choose = random.Random(seed)
    (folder / split).mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        colour, ground = choose.sample(list(COLOURS), 2)
        shape = choose.choice(SHAPES)
        image = Image.new("RGB", (size, size), COLOURS[ground])
        w = choose.randrange(size * 9 // 16, size * 3 // 4)
        x, y = choose.randrange(size - w), choose.randrange(size - w)
        pen = ImageDraw.Draw(image)
        fill = COLOURS[colour]
        if shape == "circle":
            pen.ellipse((x, y, x + w, y + w), fill=fill)
        elif shape == "square":
            pen.rectangle((x, y, x + w, y + w), fill=fill)
        elif shape == "bar":
            pen.rectangle((x, y + w // 3, x + w, y + 2 * w // 3), fill=fill)
        else:
            pen.polygon([(x, y + w), (x + w, y + w), (x + w // 2, y)], fill=fill)
        image.save(folder / split / f"{number}.png")
        caption = f"a {colour} {shape} on {ground}"
        rows.append({"image": f"{split}/{number}.png", "caption": caption})
    (folder / f"{split}.json").write_text(json.dumps(rows))


def model(folder: Path, *, seed: int = 0, wide: bool = False, **settings: object) -> Path:
    """A directory of a fresh ALBEF with a tokenizer for the captions.

    Its start is five times wider than BERT's, which is made for layers twenty times wider.

    Args:
        wide: it is wider still, see `albef_tiny.widen`.
    """
    sizes: dict[str, object] = {
        "image_size": 32, "patch_size": 8, "vision_width": 48, "vision_depth": 2, "vision_heads": 2,
        "vocab_size": len(WORDS), "text_width": 48, "text_depth": 4, "text_heads": 2,
        "text_hidden": 96, "max_positions": 16, "dropout": 0.0, "fusion_layer": 2, "embed_dim": 24,
    }  # fmt: skip
    torch.manual_seed(seed)
    network = Albef(Config(**{**sizes, **(SIX if wide else {}), **settings}))
    if wide:
        widen(network)
        return write(folder, network)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.Linear) and part.out_features > 2:
                part.weight *= 5
    return write(folder, network)


def write(folder: Path, network: Albef) -> Path:
    """A directory of the network, with the tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(network.config.to_json()))
    tensors = {name: p.detach() for name, p in network.named_parameters()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder
