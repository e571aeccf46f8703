"""Labels beside points of a plot."""

from __future__ import annotations

from collections.abc import Sequence

from pelacli.report.page import labels
from pelacli.report.page.svg import Plot, width_of

_HEIGHT = 14.0  # pixels of a label
_NEAR = 34.0  # pixels from its point within which a label needs no line to it


def write(
    plot: Plot,
    named: Sequence[tuple[float, float, str]],
    others: Sequence[tuple[float, float]] = (),
) -> None:
    """Write labels beside points so that they cover neither each other nor a point.

    Args:
        named: (x, y, label) of each point in values.
        others: further points, without labels.
    """
    points = [(plot.x(x), plot.y(y)) for x, y, _ in named]
    taken = [(plot.x(x), plot.y(y)) for x, y in others]
    sizes = [(width_of(label) + 4, _HEIGHT) for _, _, label in named]
    left, top, right, bottom = plot.frame
    middles = labels.placed(points, sizes, taken, (left, top - 8, right + 12, bottom))
    for (_, _, label), (x, y), (at_x, at_y) in zip(named, points, middles, strict=True):
        if abs(at_x - x) + abs(at_y - y) > _NEAR:
            plot.leader(x, y, at_x, at_y)
        plot.text(at_x, at_y + 4, label, "mark middle")
