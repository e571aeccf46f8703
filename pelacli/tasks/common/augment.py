"""What of a recipe's ``data.augment`` is for images with one label alone is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pelacli.recipe.schema import Augment

from pelacli.errors import RequestError

# What would need other labels than boxes and masks are, and how classification draws its crops.
_WITHOUT = ("mixup", "cutmix", "smoothing", "reprob", "auto_augment", "interpolation", "crop_pct")
_CROPS = ("scale", "ratio")


def refuse(task: str, augment: Augment, crops: str) -> None:
    """Refuse such settings, where they have another value than they have unsaid.

    Args:
        crops: what to set in place of classification's crops.

    Raises:
        RequestError: naming the first of them.
    """
    remedies = dict.fromkeys(_WITHOUT, "leave it out") | dict.fromkeys(_CROPS, crops)
    for name, remedy in remedies.items():
        if getattr(augment, name) != type(augment).model_fields[name].default:
            raise RequestError(f"data.augment.{name}: {task} has none; {remedy}")
