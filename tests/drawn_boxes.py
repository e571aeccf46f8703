"""Pictures with shapes drawn on them, in COCO's form: data on which detection is really learned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("square", "disc")
COLOURS = ((220, 60, 50), (60, 90, 220))


def draw(
    generator: np.random.Generator, side: int, most: int = 1
) -> tuple[Image.Image, list[tuple[int, list[int]]]]:
    """A picture with one to ``most`` shapes, and (class, [left, top, width, height]) of each."""
    noise = generator.integers(90, 130, (side, side, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    pen = ImageDraw.Draw(picture)
    shapes: list[tuple[int, list[int]]] = []
    for _ in range(int(generator.integers(1, most + 1))):
        kind = int(generator.integers(len(CLASSES)))
        size = int(generator.integers(side // 3, side // 2))
        left, top = (int(v) for v in generator.integers(0, side - size, 2))
        box = [left, top, left + size - 1, top + size - 1]
        (pen.rectangle if kind == 0 else pen.ellipse)(box, fill=COLOURS[kind])
        shapes.append((kind, [left, top, size, size]))
    return picture, shapes


def write(root: Path, counts: dict[str, int], side: int = 48, most: int = 1, seed: int = 0) -> Path:
    """A COCO data set: ``annotations/instances_SPLIT.json`` and a folder of images per split."""
    generator = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    for split, count in counts.items():
        (root / split).mkdir()
        content: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
        # ids as COCO's are: not from 0, with gaps
        content["categories"] = [{"id": 3 + 4 * k, "name": name} for k, name in enumerate(CLASSES)]
        for number in range(count):
            picture, shapes = draw(generator, side, most)
            name = f"{number:04}.png"
            picture.save(root / split / name)
            image = {"id": 100 + number, "file_name": name, "width": side, "height": side}
            content["images"].append(image)
            for kind, box in shapes:
                key = len(content["annotations"])
                content["annotations"].append(
                    {
                        "id": key,
                        "image_id": 100 + number,
                        "category_id": 3 + 4 * kind,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                )
        file = root / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(content), encoding="utf-8")
    return root
