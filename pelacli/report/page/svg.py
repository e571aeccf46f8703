"""Plots as SVG: a frame with axes, and marks in it. Colours are classes of the page's style, so
that they follow light, dark and paper."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence

from markupsafe import Markup

from pelacli.messages import printable
from pelacli.report.page import scales
from pelacli.report.page.scales import Scale

FONT = 12  # pixels of letters, at the plot's own size
_LETTER = 6.6  # pixels of a letter's width, about
_BELOW = 40  # pixels for what stands below the frame


class Plot:
    """One plot.

    Args:
        size: (width, height) in pixels.
        title: what it shows, in a line; detail: in some more words, for those who don't see it.
        x_name, y_name: what the axes count, with the unit.

    Attributes:
        frame: (left, top, right, bottom) of the axes.
        x, y: scales of the axes; to be set before anything is drawn.
    """

    def __init__(
        self, size: tuple[float, float], title: str, detail: str, x_name: str, y_name: str
    ) -> None:
        width, height = size
        self.frame = (50.0, 26.0, width - 14.0, height - _BELOW)
        self.root = ET.Element(
            "svg",
            {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "width": f"{width:g}"},
        )
        self._add("title", {}, title)
        self._add("desc", {}, detail)
        left, top, right, bottom = self.frame
        self.text(2, 13, y_name, "axis")
        self.text((left + right) / 2, height - 5, x_name, "axis middle")
        self.x = Scale(0, 1, left, right)
        self.y = Scale(0, 1, bottom, top)

    def axes(
        self,
        x_ticks: Sequence[tuple[float, str]] | None = None,
        y_ticks: Sequence[tuple[float, str]] | None = None,
    ) -> None:
        """Draw the grid and what is written beside it.

        Args:
            x_ticks, y_ticks: (value, text); by default round values.
        """
        left, _, right, bottom = self.frame
        room = max(2, int((right - left) / 60))
        for value, text in x_ticks or [(v, scales.label(v)) for v in self.x.ticks(room)]:
            x = self.x(value)
            self._add("line", _ends(x, bottom, x, bottom + 4) | {"class": "frame"})
            self.text(x, bottom + 17, text, "tick middle")
        for value, text in y_ticks or [(v, scales.label(v)) for v in self.y.ticks(4)]:
            y = self.y(value)
            self._add("line", _ends(left, y, right, y) | {"class": "grid"})
            self.text(left - 6, y + 4, text, "tick end")
        self._add("line", _ends(left, bottom, right, bottom) | {"class": "frame"})

    def line(
        self, points: Sequence[tuple[float, float]], style: str, *, steps: bool = False
    ) -> None:
        """Draw a line through points (x, y) in values.

        Args:
            steps: keep the height until the next point, as a front does.
        """
        places = [(self.x(x), self.y(y)) for x, y in points]
        if not places:
            return
        parts = [f"M{places[0][0]:.1f} {places[0][1]:.1f}"]
        for x, y in places[1:]:
            parts.append(f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f} {y:.1f}")
        self._add("path", {"d": "".join(parts), "class": f"line {style}"})

    def dot(self, x: float, y: float, style: str, hint: str, radius: float = 4) -> None:
        """Draw a point at values (x, y); the hint shows under the pointer."""
        mark = self._add(
            "circle",
            {
                "cx": f"{self.x(x):.1f}",
                "cy": f"{self.y(y):.1f}",
                "r": f"{radius:g}",
                "class": style,
            },
        )
        self._hint(mark, hint)

    def bar(self, left: float, right: float, top: float, style: str, hint: str) -> None:
        """Draw a bar from the bottom of the frame: sides in pixels, height as a value."""
        y, bottom = self.y(top), self.frame[3]
        mark = self._add(
            "rect",
            {
                "x": f"{left:.1f}", "y": f"{y:.1f}", "width": f"{max(right - left, 0.5):.1f}",
                "height": f"{max(bottom - y, 0):.1f}", "class": style,
            },
        )  # fmt: skip
        self._hint(mark, hint)

    def rule(self, y: float, style: str) -> None:
        """Draw a line across the frame at a value."""
        left, _, right, _ = self.frame
        self._add("line", _ends(left, self.y(y), right, self.y(y)) | {"class": f"line {style}"})

    def leader(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Draw a thin line between two places in pixels, from a point to its label."""
        self._add("line", _ends(x1, y1, x2, y2) | {"class": "leader"})

    def text(self, x: float, y: float, text: str, style: str) -> None:
        """Write at a place in pixels."""
        self._add("text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": style}, text)

    def markup(self) -> Markup:
        """The plot as markup of a page."""
        return Markup(ET.tostring(self.root, encoding="unicode"))

    def _hint(self, mark: ET.Element, hint: str) -> None:
        ET.SubElement(mark, "title").text = printable(hint)

    def _add(self, tag: str, attributes: dict[str, str], text: str | None = None) -> ET.Element:
        element = ET.SubElement(self.root, tag, attributes)
        element.text = None if text is None else printable(text)
        return element


def _ends(x1: float, y1: float, x2: float, y2: float) -> dict[str, str]:
    return {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}


def width_of(text: str) -> float:
    """How wide a text is, about, in pixels."""
    return _LETTER * len(text)
