"""Images with boxes as a detector takes them: augmented, sized by the model's own processor, and
padded to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes

if TYPE_CHECKING:
    from pelacli.recipe.data import Augment

from pelacli.data.decoding import decode
from pelacli.data.formats.objects import Objects
from pelacli.data.loader import Batch
from pelacli.errors import RequestError
from pelacli.messages import one_line

_MIN_SIDE = 1.0  # pixels; a crop may leave less of a box, which is then left out


@dataclass
class PrepareBoxes:
    """(raw image, its number, its objects or None) → a sample: ``inputs`` [C, H, W], ``sizes`` [2]
    (height and width of the original), ``numbers`` []; with objects, ``labels`` [n], ``boxes``
    [n, 4], ``crowd`` [n] and ``area`` [n].

    Boxes are cxcywh in shares of the image before it is padded: so DETR's losses, its position
    embeddings (by ``pixel_mask``) and its post-processing to the original size take them.

    Attributes:
        processor: the model's, which resizes, rescales and normalises.
        sizes: what it may resize to; one is drawn where there are several.
        mode: PIL's, "RGB" or "L".
        class_numbers: the model's number of each of the data's classes.
        transform: of (image, boxes); None: they stay as they are.
    """

    processor: Any
    sizes: Sequence[dict[str, int]]
    mode: str
    class_numbers: Sequence[int] = ()
    transform: Any = None

    def __call__(self, sample: tuple[Any, int, Objects | None], where: str) -> Batch:
        raw, number, objects = sample
        picture = decode(raw, self.mode, where, objects.size if objects is not None else None)
        if objects is not None:
            objects = objects.fitted(picture.width, picture.height, where)
        original_size = torch.tensor([picture.height, picture.width])
        image: Any = v2.functional.pil_to_tensor(picture)
        item: Batch = {"sizes": original_size, "numbers": torch.tensor(number)}
        if objects is not None:
            image, targets = self._with_objects(image, objects)
            item |= targets
        elif self.transform is not None:
            image = self.transform(image)
        size = self.sizes[0]
        if len(self.sizes) > 1:
            size = self.sizes[int(torch.randint(len(self.sizes), ()))]
        try:
            processed = self.processor(images=[image], size=size, do_pad=False, return_tensors="pt")
        except (ValueError, RuntimeError) as error:  # a side becomes 0
            asked = ", ".join(f"{name} {value}" for name, value in size.items())
            raise RequestError(
                f"{where}: its {picture.width}×{picture.height} px can't be resized to {asked} "
                f"({one_line(error, 80)} …): set a larger data.image_size, or remove it"
            ) from None
        return item | {"inputs": processed["pixel_values"][0]}

    def _with_objects(self, image: Tensor, objects: Objects) -> tuple[Tensor, dict[str, Tensor]]:
        """The image, transformed, and what is left of its objects."""
        height, width = image.shape[-2:]
        corners = torch.from_numpy(objects.boxes)
        boxes: Any = BoundingBoxes(corners, format="XYXY", canvas_size=(height, width))
        if self.transform is not None and len(boxes):  # a crop needs a box to be around
            image, boxes = self.transform(image, boxes)
        boxes = v2.functional.clamp_bounding_boxes(boxes).as_subclass(Tensor)
        keep = torch.ones(len(boxes), dtype=torch.bool)
        if self.transform is not None:
            keep = (boxes[:, 2:] - boxes[:, :2]).amin(-1) >= _MIN_SIDE
        height, width = image.shape[-2:]
        shares = boxes / torch.tensor([width, height, width, height])
        targets = {
            "labels": torch.tensor(self.class_numbers)[torch.from_numpy(objects.labels)],
            "crowd": torch.from_numpy(objects.crowd),
            "area": torch.from_numpy(objects.area),
            "boxes": box_convert(shares, "xyxy", "cxcywh"),
        }
        return image, {name: values[keep] for name, values in targets.items()}


def augmentation(augment: Augment, crop: float, zoom_out: float) -> Any:
    """The random transform of an image and its boxes in training; None if all of it is off.

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
class CollateBoxes:
    """Samples → a batch: images padded at the right and below; the objects of all images one after
    the other, ``counts`` [B] of each image.

    Attributes:
        mask: whether the model takes a mask of what is no padding.
        bare: whether it takes the images alone, as timm's models do, which are no detectors yet.
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
        crowds: also those of crowds, which no query can be trained to find.
    """
    counts = batch["counts"].tolist()
    names = {"class_labels": "labels", "boxes": "boxes", "crowd": "crowd", "area": "area"}
    split = {name: batch[key].split(counts) for name, key in names.items()}
    images = [{name: parts[i] for name, parts in split.items()} for i in range(len(counts))]
    if crowds:
        return images
    return [{name: value[~image["crowd"]] for name, value in image.items()} for image in images]


@dataclass
class ImagesAlone:
    """Images without objects by index: (image, its number, None).

    Attributes:
        source: gives tuples that begin with an image.
    """

    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int, None]:
        return self.source[index][0], index, None

    def name(self, index: int) -> str:
        name_of = getattr(self.source, "name", None)
        return name_of(index) if name_of else f"sample {index}"
