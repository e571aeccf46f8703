"""Drawn images with masks: discs and squares, told apart by the direction of their stripes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ["ground", "across", "down", "chequered"]


def draw(
    rng: np.random.Generator, side: int = 32, most: int = 3, radii: tuple[int, int] = (6, 11)
) -> tuple[Image.Image, np.ndarray]:
    """An image and the class of each of its pixels, [side, side].

    Args:
        most: shapes in it, at most.
        radii: half their width, from the first on, below the second.
    """
    image = np.full((side, side), float(rng.integers(100, 156)))
    mask = np.zeros((side, side), np.uint8)
    rows, columns = np.mgrid[:side, :side]
    for _ in range(rng.integers(1, most + 1)):
        kind, radius = int(rng.integers(1, 4)), int(rng.integers(*radii))
        x, y = (int(v) for v in rng.integers(radius, side - radius, 2))
        shape = Image.new("1", (side, side))
        pen = ImageDraw.Draw(shape)
        round_or_not = pen.ellipse if rng.integers(2) else pen.rectangle
        round_or_not((x - radius, y - radius, x + radius, y + radius), fill=1)
        inside = np.asarray(shape)
        first, second = rng.integers(4, size=2)
        across, down = (((v + p) // 2 % 2) * 2 - 1 for v, p in ((rows, first), (columns, second)))
        stripes = {1: across, 2: down, 3: across * down}[kind]
        image = np.where(inside, 128 + 80 * stripes, image)
        mask[inside] = kind
    noisy = image[..., None] + rng.normal(0, 20, (side, side, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)), mask


def write(root: Path, counts: dict[str, int], side: int = 32, seed: int = 0) -> Path:
    """A dataset in ADE20K's layout."""
    rng = np.random.default_rng(seed)
    for split, count in counts.items():
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for index in range(count):
            image, mask = draw(rng, side)
            image.save(root / "images" / split / f"{index}.png")
            Image.fromarray(mask).save(root / "annotations" / split / f"{index}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def write_kinds(root: Path, counts: dict[str, int], side: int = 32, seed: int = 1) -> Path:
    """For a classifier: a folder per class, of images with one large shape each."""
    rng = np.random.default_rng(seed)
    for split, count in counts.items():
        for index in range(count):
            image, mask = draw(rng, side, most=1, radii=(12, 16))
            folder = root / split / CLASSES[int(mask.max())]
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{index}.png")
    return root
