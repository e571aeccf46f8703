"""Pictures that come with texts: prepared for a model, varied as ALBEF varies them, and mirrored
together with their texts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pelacli.models.inputs import ImageInput, PairInput
    from pelacli.recipe.data import Data

from pelacli.data.decoding import decode
from pelacli.data.images import image_transform
from pelacli.errors import RequestError
from pelacli.recipe.data import Augment

# ALBEF's RandAugment. No operation changes a colour or a direction that a text may name. timm's "p"
# is the probability of an operation, in place of ALBEF's Identity, one in ten: rand-m7-n2-p0.9.
OPERATIONS = ["AutoContrast", "Equalize", "Brightness", "Sharpness", "ShearX", "ShearY",
              "TranslateXRel", "TranslateYRel", "Rotate"]  # fmt: skip

_SIDES = {"left": "right", "right": "left"}


class PreparePicture:
    """(a raw image, its name in errors) → (a tensor [C, H, W], whether it was mirrored).

    The flip is drawn here and not by timm: the text of a mirrored image must change (`swap_sides`).

    Attributes:
        size: (height, width) of the tensor.

    Args:
        crop: False: training takes the whole image, as evaluation does.
    """

    def __init__(self, inputs: PairInput, data: Data, training: bool, *, crop: bool = True) -> None:
        image, augment = inputs.image, data.augment
        if data.image_size:
            image = replace(image, size=(image.size[0], data.image_size, data.image_size))
        self.size = image.size[1:]
        self.flip = 0.0
        self.transform: Callable[[Any], Tensor]
        if training and not augment.none:
            self.flip = augment.hflip
            self.transform = _augmented(image, augment, crop=crop)
        elif _crops_the_centre(image):
            still = Augment(none=True, crop_pct=augment.crop_pct)
            self.transform = image_transform(image, False, still, None).transform
        else:
            self.transform = _squeezed(image)

    def __call__(self, raw: Any, where: str) -> tuple[Tensor, bool]:
        return self.prepare(self.decode(raw, where))

    def decode(self, raw: Any, where: str) -> Any:
        """The PIL image as it is."""
        if hasattr(raw, "read"):  # an image of a hub dataset, which only its row names
            return decode(raw.read(), "RGB", where)
        return decode(raw, "RGB", f"{where} ({raw})")

    def prepare(self, image: Any) -> tuple[Tensor, bool]:
        """A PIL image → (tensor, whether it was mirrored)."""
        mirrored = self.flip > 0 and bool(torch.rand(()) < self.flip)
        if mirrored:
            image = image.transpose(0)  # PIL's FLIP_LEFT_RIGHT
        return self.transform(image), mirrored


def swap_sides(text: str) -> str:
    """The text of the mirrored image: "left" and "right" change places."""

    def swapped(match: re.Match[str]) -> str:
        side = _SIDES[match[0].lower()]
        return side.capitalize() if match[0][0].isupper() else side

    return re.sub(r"\b(left|right)", swapped, text, flags=re.IGNORECASE)


def _crops_the_centre(image: ImageInput) -> bool:
    processor = image.processor or {}
    return bool(processor.get("do_center_crop", processor.get("crop_size")))


def _options(image: ImageInput) -> dict[str, Any]:
    return {"mean": image.mean, "std": image.std, "interpolation": image.interpolation}


def _squeezed(image: ImageInput) -> Callable[[Any], Tensor]:
    """The transform of evaluation: the whole image, squeezed into the square."""
    from timm.data import create_transform

    transform: Callable[[Any], Tensor] = create_transform(
        image.size, crop_pct=1.0, crop_mode="squash", **_options(image)
    )
    return transform


def _augmented(image: ImageInput, augment: Augment, *, crop: bool) -> Callable[[Any], Tensor]:
    """The transform of training, without the flip: a random crop, and RandAugment with
    `OPERATIONS`.

    Args:
        crop: False: the whole image is squeezed into the square.

    Raises:
        RequestError: the augmentation mixes classes, or timm refuses it.
    """
    from timm.data import create_transform
    from timm.data.auto_augment import rand_augment_transform
    from timm.data.transforms import str_to_interp_mode
    from torchvision.transforms import Compose, Resize

    if augment.mixup or augment.cutmix or augment.smoothing:
        raise RequestError(
            "data.augment: mixup, cutmix and smoothing mix classes; leave them out for texts"
        )
    options = _options(image)
    if augment.interpolation:
        options["interpolation"] = augment.interpolation
    try:
        cropped, colour, tensor = create_transform(
            image.size,
            is_training=True,
            separate=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=0.0,
            vflip=augment.vflip,
            color_jitter=augment.color_jitter or 0.0,
            re_prob=augment.reprob,
            re_mode="pixel",
            **options,
        )
        whole = Resize(image.size[1:], str_to_interp_mode(image.interpolation))
        steps = [cropped if crop else whole, colour]
        if augment.auto_augment:
            mean = tuple(round(255 * value) for value in image.mean)
            steps.append(
                rand_augment_transform(augment.auto_augment, {"img_mean": mean}, OPERATIONS)
            )
        composed: Callable[[Any], Tensor] = Compose([*steps, tensor])
        return composed
    except (AssertionError, KeyError, ValueError, TypeError) as error:
        raise RequestError(f"data.augment: timm refuses it ({error!r})") from None
