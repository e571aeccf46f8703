"""What tasks on images with texts share: pictures as ALBEF takes them, texts padded to a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pelacli.errors import RequestError

if TYPE_CHECKING:
    from pelacli.models import ImageInput
    from pelacli.recipe import Augment

# Those of ALBEF's RandAugment. None changes a colour, or what is up, to another that a text may
# name. timm's "p" stands for its Identity, one in ten: rand-m7-n2-p0.9.
OPERATIONS = ["AutoContrast", "Equalize", "Brightness", "Sharpness", "ShearX", "ShearY",
              "TranslateXRel", "TranslateYRel", "Rotate"]  # fmt: skip


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


def padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """Rows of token numbers of several lengths → [B, T]."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=filler)
