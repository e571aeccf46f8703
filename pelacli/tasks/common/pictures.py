"""Pictures that come with texts: varied as ALBEF varies them, and mirrored with their texts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pelacli.models.inputs import ImageInput, PairInput
    from pelacli.recipe.schema import Data

from pelacli.data.images import decode, image_transform
from pelacli.errors import RequestError
from pelacli.recipe.schema import Augment

# Those of ALBEF's RandAugment. None changes a colour, or what is up, to another that a text may
# name. timm's "p" stands for its Identity, one in ten: rand-m7-n2-p0.9.
OPERATIONS = ["AutoContrast", "Equalize", "Brightness", "Sharpness", "ShearX", "ShearY",
              "TranslateXRel", "TranslateYRel", "Rotate"]  # fmt: skip


_SIDES = {"left": "right", "right": "left"}


def picture(
    inputs: ImageInput, augment: Augment | None, *, crop: bool = True
) -> Callable[[Any], Tensor]:
    """A PIL image → [3, H, W].

    Args:
        augment: of training: a random crop, a flip, RandAugment with `OPERATIONS`. None: the whole
            image, squeezed into the square.
        crop: False: the whole image is squeezed into the square in training too.

    Raises:
        RequestError: timm refuses the augmentation.
    """
    from timm.data import create_transform
    from timm.data.auto_augment import rand_augment_transform
    from timm.data.transforms import str_to_interp_mode
    from torchvision.transforms import Compose, Resize

    options: dict[str, Any] = {"mean": inputs.mean, "std": inputs.std}
    options["interpolation"] = inputs.interpolation
    if augment is None or augment.none:
        transform: Callable[[Any], Tensor] = create_transform(
            inputs.size, crop_pct=1.0, crop_mode="squash", **options
        )
        return transform
    if augment.mixup or augment.cutmix or augment.smoothing:
        raise RequestError(
            "data.augment: mixup, cutmix and smoothing mix classes; leave them out for texts"
        )
    if augment.interpolation:
        options["interpolation"] = augment.interpolation
    try:
        cropped, colour, tensor = create_transform(
            inputs.size,
            is_training=True,
            separate=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            vflip=augment.vflip,
            color_jitter=augment.color_jitter or 0.0,
            re_prob=augment.reprob,
            re_mode="pixel",
            **options,
        )
        whole = Resize(inputs.size[1:], str_to_interp_mode(inputs.interpolation))
        parts = [cropped if crop else whole, colour]
        if augment.auto_augment:
            mean = tuple(round(255 * value) for value in inputs.mean)
            parts.append(
                rand_augment_transform(augment.auto_augment, {"img_mean": mean}, OPERATIONS)
            )
        composed: Callable[[Any], Tensor] = Compose([*parts, tensor])
        return composed
    except (AssertionError, KeyError, ValueError, TypeError) as error:
        raise RequestError(f"data.augment: timm refuses it ({error!r})") from None


class Look:
    """(a raw image, its name in errors) → (a tensor [C, H, W], whether it was mirrored).

    A mirrored image needs its text changed (`mirrored`), so the flip is drawn here and not by timm.

    Args:
        crop: random crops in training; else the whole image, always.
    """

    def __init__(self, inputs: PairInput, data: Data, training: bool, *, crop: bool = True) -> None:
        augment, image = data.augment, inputs.image
        if data.image_size:
            image = replace(image, size=(image.size[0], data.image_size, data.image_size))
        self.size = image.size[1:]
        if not training or augment.none:
            processor = image.processor or {}
            centre = bool(processor.get("do_center_crop", processor.get("crop_size")))
            self.flip, still = 0.0, Augment(none=True, crop_pct=augment.crop_pct)
            self.transform: Callable[[Any], Tensor] = (
                image_transform(image, False, still, None).transform
                if centre
                else picture(image, None)
            )
            return
        self.flip = augment.hflip
        self.transform = picture(image, augment.model_copy(update={"hflip": 0.0}), crop=crop)

    def __call__(self, raw: Any, where: str) -> tuple[Tensor, bool]:
        return self.show(self.read(raw, where))

    def read(self, raw: Any, where: str) -> Any:
        """The picture as it is, of PIL."""
        if hasattr(raw, "read"):  # of a hub's rows: the row is all that names it
            return decode(raw.read(), "RGB", where)
        return decode(raw, "RGB", f"{where} ({raw})")

    def show(self, shown: Any) -> tuple[Tensor, bool]:
        mirrors = self.flip > 0 and bool(torch.rand(()) < self.flip)
        if mirrors:
            shown = shown.transpose(0)  # PIL's FLIP_LEFT_RIGHT
        return self.transform(shown), mirrors


def mirrored(text: str) -> str:
    """A text for the mirrored image: "left" and "right" change places."""

    def other(found: re.Match[str]) -> str:
        word = found[0]
        swapped = _SIDES[word.lower()]
        return swapped.capitalize() if word[0].isupper() else swapped

    return re.sub(r"\b(left|right)", other, text, flags=re.IGNORECASE)
