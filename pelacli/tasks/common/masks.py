"""Samples of an image and a mask: scaled, cropped and mirrored together, and batched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pelacli.models.inputs import ImageInput
    from pelacli.recipe.data import Augment
    from pelacli.recipe.fields import Range

from pelacli.data.decoding import decode
from pelacli.data.formats.mask_numbers import class_numbers, open_mask
from pelacli.data.loader import Batch


@dataclass
class PrepareMask:
    """(image, mask) → a sample: ``inputs`` [C, H, W], ``masks`` [h, w].

    Attributes:
        image_input: what the model takes.
        size: (height, width) of the inputs.
        transform: random, of image and mask together; None in evaluation, where the image is
            stretched and the mask stays as it is.
        classes: how many there are; None where there are no masks.
        ignore, reduce: as for `pelacli.data.formats.mask_numbers.class_numbers`.
    """

    image_input: ImageInput
    size: tuple[int, int]
    transform: Any
    classes: int | None
    ignore: int
    reduce: bool

    def __call__(self, sample: tuple[Any, Any], where: str) -> Batch:
        from torchvision import tv_tensors
        from torchvision.transforms.v2 import functional as V

        mode = "L" if self.image_input.size[0] == 1 else "RGB"
        mask = None
        if self.classes is None:
            image = decode(sample[0], mode, where)
        else:
            numbers, name = open_mask(sample[1], where)
            image = decode(sample[0], mode, where, numbers.size)
            mask = class_numbers(
                numbers,
                name,
                size=(image.height, image.width),
                classes=self.classes,
                ignore=self.ignore,
                reduce=self.reduce,
            )
        picture = tv_tensors.Image(V.pil_to_tensor(image))
        if self.transform is None:
            picture = V.resize(
                picture,
                list(self.size),
                interpolation=_interpolation(self.image_input),
                antialias=True,
            )
        elif mask is None:
            picture = self.transform(picture)
        else:
            picture, mask = self.transform(picture, tv_tensors.Mask(mask))
        mean, std = _statistics(self.image_input)
        pixels = V.to_dtype(picture.as_subclass(Tensor), torch.float32, scale=True)
        item: Batch = {"inputs": V.normalize(pixels, mean, std)}
        if mask is not None:
            item["masks"] = mask.as_subclass(Tensor)
        return item


def _statistics(image_input: ImageInput) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel. A grey model may have three of each, from a colour model."""
    channels, mean, std = image_input.size[0], list(image_input.mean), list(image_input.std)
    if channels == 1:
        return [sum(mean) / len(mean)], [sum(std) / len(std)]
    return mean, std


def _interpolation(image_input: ImageInput) -> Any:
    """The model's interpolation; bicubic in place of one that torchvision lacks for tensors."""
    from torchvision.transforms.v2 import InterpolationMode

    known = image_input.interpolation in ("nearest", "bilinear")
    return InterpolationMode(image_input.interpolation if known else "bicubic")


def joint_transform(
    image_input: ImageInput, size: tuple[int, int], augment: Augment, resize: Range, ignore: int
) -> Any:
    """The random transform of training: image and mask are scaled, cropped and mirrored together;
    colours change in the image alone. A small image is padded with the mean colour, and its mask
    with pixels that do not count.

    Args:
        size: (height, width) of the crop.
        resize: least and most of the image's shorter side, in shorter sides of the crop.
    """
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    short = min(size)
    least, most = (max(1, round(factor * short)) for factor in resize)
    mean, _ = _statistics(image_input)
    fill = {tv_tensors.Image: [255 * value for value in mean], tv_tensors.Mask: ignore}
    jitter = augment.color_jitter
    parts = [
        v2.RandomResize(least, most + 1, interpolation=_interpolation(image_input)),
        v2.RandomCrop(size, pad_if_needed=True, fill=fill),
        v2.RandomHorizontalFlip(augment.hflip),
        v2.RandomVerticalFlip(augment.vflip),
        *([v2.ColorJitter(jitter, jitter, jitter)] if jitter and len(mean) == 3 else []),
    ]
    return v2.Compose(parts)


@dataclass
class CollateMasks:
    """Samples → a batch. Masks of several sizes are padded with pixels that do not count, and
    ``sizes`` [B, 2] are theirs."""

    ignore: int

    def __call__(self, items: list[Batch]) -> Batch:
        batch: Batch = {"inputs": torch.stack([item["inputs"] for item in items])}
        if "masks" not in items[0]:
            return batch
        masks = [item["masks"] for item in items]
        sizes = torch.tensor([list(mask.shape) for mask in masks])
        height, width = sizes.amax(0).tolist()
        batch["masks"] = torch.full((len(masks), height, width), self.ignore)
        for padded, mask in zip(batch["masks"], masks, strict=True):
            padded[: mask.shape[0], : mask.shape[1]] = mask
        batch["sizes"] = sizes
        return batch
