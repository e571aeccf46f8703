"""Samples of an image and a mask: scaled, cropped and mirrored together, and batched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pelacli.models.inputs import ImageInput
    from pelacli.recipe.fields import Range
    from pelacli.recipe.schema import Augment

from pelacli.data.formats import masks
from pelacli.data.images import decode
from pelacli.data.loader import Batch


@dataclass
class Make:
    """A sample from (image, mask): ``inputs`` [C, H, W], ``masks`` [h, w].

    Attributes:
        size: (height, width) of the inputs.
        joint: random transform of image and mask together; None in evaluation, where the image is
            stretched and the mask stays as it is.
        classes: how many there are; None where there are no masks.
        ignore, reduce: as of `pelacli.data.formats.masks.read_mask`.
    """

    sees: ImageInput
    size: tuple[int, int]
    joint: Any
    classes: int | None
    ignore: int
    reduce: bool

    def __call__(self, sample: tuple[Any, Any], where: str) -> Batch:
        from torchvision import tv_tensors
        from torchvision.transforms.v2 import functional as V

        image = decode(sample[0], "L" if self.sees.size[0] == 1 else "RGB", where)
        mask = None
        if self.classes is not None:
            mask = masks.read_mask(
                sample[1],
                where,
                size=(image.height, image.width),
                classes=self.classes,
                ignore=self.ignore,
                reduce=self.reduce,
            )
        picture = tv_tensors.Image(V.pil_to_tensor(image))
        if self.joint is None:
            picture = V.resize(
                picture, list(self.size), interpolation=_method(self.sees), antialias=True
            )
        elif mask is None:
            picture = self.joint(picture)
        else:
            picture, mask = self.joint(picture, tv_tensors.Mask(mask))
        mean, std = _statistics(self.sees)
        pixels = V.to_dtype(picture.as_subclass(Tensor), torch.float32, scale=True)
        item: Batch = {"inputs": V.normalize(pixels, mean, std)}
        if mask is not None:
            item["masks"] = mask.as_subclass(Tensor)
        return item


def _statistics(sees: ImageInput) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel; a grey model may carry the colour model's."""
    channels, mean, std = sees.size[0], list(sees.mean), list(sees.std)
    if channels == 1:
        return [sum(mean) / len(mean)], [sum(std) / len(std)]
    return mean, std


def _method(sees: ImageInput) -> Any:
    """The model's interpolation, or bicubic for those that torchvision has for files alone."""
    from torchvision.transforms.v2 import InterpolationMode

    known = sees.interpolation in ("nearest", "bilinear")
    return InterpolationMode(sees.interpolation if known else "bicubic")


def joint(
    sees: ImageInput, size: tuple[int, int], augment: Augment, resize: Range, ignore: int
) -> Any:
    """Scale, crop, mirror and colour, of image and mask together where that is meant. What lies
    outside of a small image is the mean colour, and does not count.

    Args:
        size: (height, width) of the crop.
        resize: least and most of the image's shorter side, in shorter sides of the crop.
    """
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    short = min(size)
    least, most = (max(1, round(factor * short)) for factor in resize)
    mean, _ = _statistics(sees)
    fill = {tv_tensors.Image: [255 * one for one in mean], tv_tensors.Mask: ignore}
    jitter = augment.color_jitter
    parts = [
        v2.RandomResize(least, most + 1, interpolation=_method(sees)),
        v2.RandomCrop(size, pad_if_needed=True, fill=fill),
        v2.RandomHorizontalFlip(augment.hflip),
        v2.RandomVerticalFlip(augment.vflip),
        *([v2.ColorJitter(jitter, jitter, jitter)] if jitter and len(mean) == 3 else []),
    ]
    return v2.Compose(parts)


@dataclass
class Collate:
    """Batches of samples; masks of several sizes are padded with pixels that do not count."""

    ignore: int

    def __call__(self, items: list[Batch]) -> Batch:
        batch: Batch = {"inputs": torch.stack([item["inputs"] for item in items])}
        if "masks" not in items[0]:
            return batch
        found = [item["masks"] for item in items]
        sizes = torch.tensor([list(mask.shape) for mask in found])
        height, width = sizes.amax(0).tolist()
        batch["masks"] = torch.full((len(found), height, width), self.ignore)
        for place, mask in zip(batch["masks"], found, strict=True):
            place[: mask.shape[0], : mask.shape[1]] = mask
        batch["sizes"] = sizes
        return batch
