"""The objects of one image: their boxes, and in which pixels these count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelacli.console import warn_once
from pelacli.errors import RequestError

# How far a box may reach over its image's edge, in pixels: tools round in their own ways.
OVER = 2.0
# How far a resized copy's sides may be from the annotated ones times its scale, in pixels.
_ROUNDED = 1.0


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
        boxes: [n, 4] left, top, right, bottom, in pixels of the image.
        labels: [n], places of their classes in the list of class names.
        crowd: [n], whether the box is around a crowd, whose members have none of their own.
        area: [n], pixels of the objects themselves, by which COCO tells small from large.
        size: (width, height) of the image that was annotated; None: not told.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float32]
    size: tuple[float, float] | None = None

    @classmethod
    def of(
        cls, rows: Sequence[tuple[Sequence[float], int, bool, float]], width: Any, height: Any
    ) -> Objects:
        """From (box, label, crowd, area) of each; width and height may be None."""
        return cls(
            np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
            np.array([row[1] for row in rows], np.int64),
            np.array([row[2] for row in rows], np.bool_),
            np.array([row[3] for row in rows], np.float32),
            (width, height) if width and height else None,
        )

    def fitted(self, width: int, height: int, where: str) -> Objects:
        """The same objects in pixels of the picture that the file holds.

        A resized copy of the annotated image has its boxes resized too, which is said once.

        Args:
            width, height: of that picture.
            where: names it in errors.

        Raises:
            RequestError: it is another picture than the annotated one, or a box lies outside of it.
        """
        if self.size is None:
            check_inside(self.boxes, width, height, where)
            return self
        if self.size == (width, height):
            return self
        across, down = width / self.size[0], height / self.size[1]
        by_width = abs(self.size[1] * across - height) <= _ROUNDED
        if not by_width and abs(self.size[0] * down - width) > _ROUNDED:
            raise RequestError(
                f"{where}: is {width}×{height} px, but its annotation says "
                f"{self.size[0]:g}×{self.size[1]:g}: not a resized copy, so its boxes are those of "
                "another picture; give the file that was annotated, or mend width, height and boxes"
            )
        warn_once(
            "resized",
            f"{where}: is {width}×{height} px, but its annotation says "
            f"{self.size[0]:g}×{self.size[1]:g}; boxes of such resized copies are scaled to them",
        )
        scale = np.array([across, down, across, down], np.float32)
        return replace(
            self,
            boxes=self.boxes * scale,
            area=self.area * np.float32(across * down),
            size=(width, height),
        )


def check_inside(boxes: Any, width: int, height: int, where: str) -> None:
    """Refuse boxes [n, 4] (left, top, right, bottom) of which one lies outside of a picture."""
    for box in boxes:
        left, top, right, bottom = (float(value) for value in box)
        if min(left, top) < -OVER or right > width + OVER or bottom > height + OVER:
            raise RequestError(
                f"{where}: the box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) lies "
                f"outside of the picture, {width}×{height} px; give the file that was annotated"
            )
