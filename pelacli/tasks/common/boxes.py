"""Images with boxes as a detector takes them: augmented, sized by the model's own processor, padded
to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes

from pelacli.data.formats.coco import Objects
from pelacli.data.images import decode
from pelacli.data.loader import Batch

_LEAST = 1.0  # pixels a side: what is left of a box by a crop, if less, is left out


@dataclass
class Prepare:
    """(raw image, its number, its objects or None) → a sample of tensors.

    Boxes are cxcywh in shares of the image as it is before padding, which is what DETR's losses,
    its position embeddings (by ``pixel_mask``) and its post-processing at the original size mean.

    Attributes:
        processor: the model's, which resizes, rescales and normalises.
        sizes: what it may resize to; one is drawn where there are several.
        places: of the data's classes among the model's.
        transform: of (image, boxes); None: they stay as they are.
    """

    processor: Any
    sizes: Sequence[dict[str, int]]
    mode: str
    places: Sequence[int] = ()
    transform: Any = None

    def __call__(self, sample: tuple[Any, int, Objects | None], where: str) -> Batch:
        raw, number, objects = sample
        picture = decode(raw, self.mode, where)
        original = torch.tensor([picture.height, picture.width])
        image: Any = v2.functional.pil_to_tensor(picture)
        found: Batch = {"sizes": original, "numbers": torch.tensor(number)}
        if objects is not None:
            boxes: Any = BoundingBoxes(
                torch.from_numpy(objects.boxes),
                format="XYXY",
                canvas_size=(picture.height, picture.width),
            )
            found["labels"] = torch.tensor(self.places)[torch.from_numpy(objects.labels)]
            found["crowd"] = torch.from_numpy(objects.crowd)
            found["area"] = torch.from_numpy(objects.area)
            if self.transform is not None and len(boxes):  # a crop needs a box to hold
                image, boxes = self.transform(image, boxes)
            boxes = v2.functional.clamp_bounding_boxes(boxes).as_subclass(Tensor)
            keep = torch.ones(len(boxes), dtype=torch.bool)
            if self.transform is not None:
                keep = (boxes[:, 2:] - boxes[:, :2]).amin(-1) >= _LEAST
            height, width = image.shape[-2:]
            shares = boxes / torch.tensor([width, height, width, height])
            found["boxes"] = box_convert(shares, "xyxy", "cxcywh")
            for name in ("labels", "crowd", "area", "boxes"):
                found[name] = found[name][keep]
        elif self.transform is not None:
            image = self.transform(image)
        size = self.sizes[0]
        if len(self.sizes) > 1:
            size = self.sizes[int(torch.randint(len(self.sizes), ()))]
        done = self.processor(images=[image], size=size, do_pad=False, return_tensors="pt")
        return found | {"inputs": done["pixel_values"][0]}


def augmented(augment: Any, crop: float, zoom_out: float) -> Any:
    """The random transforms of training.

    Args:
        augment: the recipe's ``data.augment``, of which flips and colour jitter apply.
        crop: share of images that are cropped around some of their boxes (SSD's sampling).
        zoom_out: share of images that are set into a larger black canvas.
    """
    steps: list[Any] = []
    if augment.color_jitter:
        steps.append(v2.ColorJitter(*3 * [augment.color_jitter]))
    if zoom_out:
        steps.append(v2.RandomZoomOut(side_range=(1.0, 2.0), p=zoom_out))
    if crop:
        steps.append(v2.RandomApply([v2.RandomIoUCrop()], p=crop))
    if augment.hflip:
        steps.append(v2.RandomHorizontalFlip(augment.hflip))
    if augment.vflip:
        steps.append(v2.RandomVerticalFlip(augment.vflip))
    return v2.Compose(steps) if steps else None


@dataclass
class Collate:
    """Samples → a batch: images padded at the right and below, objects one after the other, with
    ``counts`` [B] of each image.

    Attributes:
        mask: whether the model is told what is padding.
        bare: whether it takes the images by themselves, as timm's models do, which are no detectors
            yet.
    """

    mask: bool
    bare: bool = False

    def __call__(self, items: list[Batch]) -> Batch:
        images = [item["inputs"] for item in items]
        height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
        pixels = images[0].new_zeros(len(images), len(images[0]), height, width)
        mask = torch.zeros(len(images), height, width, dtype=torch.long)
        for number, image in enumerate(images):
            rows, columns = image.shape[-2:]
            pixels[number, :, :rows, :columns] = image
            mask[number, :rows, :columns] = 1
        inputs: Any = {"pixel_values": pixels} | ({"pixel_mask": mask} if self.mask else {})
        batch: Batch = {"inputs": pixels if self.bare else inputs}
        for name in ("sizes", "numbers"):
            batch[name] = torch.stack([item[name] for item in items])
        if "labels" in items[0]:
            batch["counts"] = torch.tensor([len(item["labels"]) for item in items])
            for name in ("labels", "boxes", "crowd", "area"):
                batch[name] = torch.cat([item[name] for item in items])
        return batch


def targets(batch: Batch, crowds: bool = False) -> list[dict[str, Tensor]]:
    """For each image of a batch its ``class_labels`` [n] and ``boxes`` [n, 4], as transformers'
    losses take them, beside ``crowd`` and ``area``.

    Args:
        crowds: also boxes of crowds, which no one query can be trained to find.
    """
    counts = batch["counts"].tolist()
    names = {"class_labels": "labels", "boxes": "boxes", "crowd": "crowd", "area": "area"}
    split = {name: batch[key].split(counts) for name, key in names.items()}
    found = [{name: parts[i] for name, parts in split.items()} for i in range(len(counts))]
    if crowds:
        return found
    return [{name: value[~image["crowd"]] for name, value in image.items()} for image in found]


@dataclass
class Plain:
    """Images without objects by index: (image, its number, None)."""

    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int, None]:
        return self.source[index][0], index, None

    def name(self, index: int) -> str:
        named = getattr(self.source, "name", None)
        return named(index) if named else f"sample {index}"
