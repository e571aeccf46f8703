"""What a task does not do of a recipe's ``data.augment`` is refused, not passed over."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from pelacli.errors import RequestError

if TYPE_CHECKING:
    from pelacli.recipe import Augment


def refuse(task: str, augment: Augment, names: Collection[str], remedy: str = "") -> None:
    """Refuse settings that have another value than the one they have where nothing is said.

    Args:
        remedy: what to set in their place.

    Raises:
        RequestError: naming the first of them.
    """
    for name in names:
        if getattr(augment, name) != type(augment).model_fields[name].default:
            raise RequestError(f"data.augment.{name}: {task} has none; {remedy or 'leave it out'}")
