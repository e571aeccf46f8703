"""Images transformed for a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from pelacli.models.inputs import ImageInput
    from pelacli.recipe.data import Augment

from pelacli.data.decoding import decode
from pelacli.errors import RequestError


@dataclass
class PrepareImage:
    """(a raw image, its name in errors) → a tensor [C, H, W]."""

    mode: str
    transform: Callable[[Any], Tensor]

    def __call__(self, raw: Any, where: str) -> Tensor:
        return self.transform(decode(raw, self.mode, where))


def image_transform(
    inputs: ImageInput, training: bool, augment: Augment | None, image_size: int | None
) -> PrepareImage:
    """The transform of an image model; arguments as in `open_dataset`."""
    from timm.data import create_transform

    channels, height, width = inputs.size
    if channels not in (1, 3):
        raise RequestError(f"the model takes images of {channels} channels; only 1 and 3 are read")
    size = (channels, image_size, image_size) if image_size else (channels, height, width)
    mean, std = inputs.mean, inputs.std
    if channels == 1:  # a grey model may carry the colour model's statistics
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    options: dict[str, Any] = {"interpolation": inputs.interpolation, "crop_pct": inputs.crop_pct}
    if augment is not None:
        if augment.crop_pct is not None:
            options["crop_pct"] = augment.crop_pct
        if training and not augment.none:
            names = ("scale", "ratio", "hflip", "vflip", "color_jitter", "auto_augment")
            options |= {name: getattr(augment, name) for name in names}
            options |= {"is_training": True, "re_prob": augment.reprob, "re_mode": "pixel"}
            options["interpolation"] = augment.interpolation or inputs.interpolation
    try:
        transform = create_transform(input_size=size, mean=mean, std=std, **options)
    except (AssertionError, KeyError, ValueError, TypeError) as error:
        raise RequestError(f"data.augment: timm refuses it ({error!r})") from None
    return PrepareImage("L" if channels == 1 else "RGB", transform)
