"""Keys of a recipe that a training step passes over, as its model or its data have no use for them.

A recipe is shared between models, so they are said and not refused. What the recipe alone decides
is `pelacli.recipe.idle`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pelacli.console import warn_once
from pelacli.models.heads import num_classes
from pelacli.models.inputs import TextInput
from pelacli.models.opened import OpenModel
from pelacli.recipe.fields import Section
from pelacli.recipe.step import Step
from pelacli.recipe.training import Train

# Keys of [data.augment] that change pictures.
_OF_PICTURES = (
    "none", "scale", "ratio", "hflip", "vflip", "color_jitter", "auto_augment", "reprob",
    "interpolation", "crop_pct",
)  # fmt: skip


def say(step: Step[Train], opened: OpenModel, labelled: bool) -> None:
    """Note the keys that are passed over.

    Args:
        labelled: whether the step learns from labels.
    """
    for key, why in _keys(step, opened, labelled):
        message = f"{key}: {why}, so it is passed over"
        warn_once(message, message)


def _keys(step: Step[Train], opened: OpenModel, labelled: bool) -> Iterator[tuple[str, str]]:
    """(key, why it is passed over)."""
    data = step.data
    assert data is not None  # the recipe's validation has seen to it
    if isinstance(opened.inputs, TextInput):
        if data.image_size is not None:
            yield "data.image_size", "the model reads texts"
        for key in _OF_PICTURES:
            if _is_changed(data.augment, key):
                yield f"data.augment.{key}", "the model reads texts"
        if step.settings.channels_last:
            yield f"{step.name}.channels_last", "the model reads texts"
    if data.augment.smoothing and not labelled:
        yield "data.augment.smoothing", "no labels are learned from"
    if step.name != "pretrain" and step.opening.num_classes and num_classes(opened) is None:
        yield "num_classes", "the model has no output for each class"


def _is_changed(section: Section, key: str) -> bool:
    default: Any = type(section).model_fields[key].default
    return bool(getattr(section, key) != default)
