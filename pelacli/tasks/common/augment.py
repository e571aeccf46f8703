"""Which of a recipe's ``data.augment`` settings a task refuses: those for images of one label."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pelacli.recipe.data import Augment

from pelacli.errors import RequestError

# Some of them would need labels of another kind than boxes and masks, the others are about
# classification's own crops.
_LABEL_SETTINGS = (
    "mixup", "cutmix", "smoothing", "reprob", "auto_augment", "interpolation", "crop_pct",
)  # fmt: skip
_CROP_SETTINGS = ("scale", "ratio")


def refuse_settings_of_classification(task: str, augment: Augment, crops: str) -> None:
    """Refuse such settings where they differ from their defaults.

    Args:
        crops: what to set in place of classification's crops.

    Raises:
        RequestError: naming the first of them.
    """
    remedies = dict.fromkeys(_LABEL_SETTINGS, "leave it out") | dict.fromkeys(_CROP_SETTINGS, crops)
    for name, remedy in remedies.items():
        if getattr(augment, name) != type(augment).model_fields[name].default:
            raise RequestError(f"data.augment.{name}: {task} has none; {remedy}")
