"""Where short labels go beside points so that they cover neither each other nor a point."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, top, right, bottom

_ANGLES = [math.radians(a) for a in (-45, 45, -135, 135, -90, 90, 0, 180)]
_DISTANCES = (13.0, 20.0, 28.0, 38.0, 50.0)


def placed(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    taken: Sequence[tuple[float, float]],
    frame: Box,
) -> list[tuple[float, float]]:
    """The middle of each point's label, in pixels.

    Near points first, and further out where that is full: then it wants a line to its point.

    Args:
        points: what the labels belong to.
        sizes: (width, height) of each label.
        taken: further points that no label may cover.
        frame: labels stay in it.
    """
    dots = [_box(x, y, 10, 10) for x, y in (*points, *taken)]
    boxes: list[Box] = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        candidates = [
            _box(x + math.cos(angle) * (d + width / 2 - 5), y + math.sin(angle) * d, width, height)
            for d in _DISTANCES
            for angle in _ANGLES
        ]
        boxes.append(min(candidates, key=lambda box: _cost(box, dots, boxes, frame)))
    return [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in boxes]


def _cost(box: Box, dots: Sequence[Box], boxes: Sequence[Box], frame: Box) -> float:
    """How much a label covers; of equal ones ``min`` takes the first, which is the nearest."""
    covered = sum(_overlap(box, other) for other in boxes) * 4
    covered += sum(_overlap(box, dot) for dot in dots)
    return covered + 10 * (_area(box) - _overlap(box, frame))


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0
