"""A plot as the page shows it: with its heading, its caption, a key, and its figures as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from pelacli.report.tables import Row


@dataclass(frozen=True)
class Figure:
    """One plot.

    Attributes:
        title: its heading.
        caption: what it shows, and how to read it.
        wide: the plot; narrow: the same for a phone, where it is drawn anew.
        key: (mark, what it stands for).
        table: the same figures as rows, for those who can't see it.
    """

    title: str
    wide: Markup
    caption: str = ""
    narrow: Markup | None = None
    key: Sequence[tuple[str, str]] = field(default_factory=list)
    table: Sequence[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Gallery:
    """Small plots of the same kind side by side.

    Attributes:
        plots: (heading, plot).
        key: (class of the mark, what it stands for).
    """

    title: str
    caption: str
    plots: Sequence[tuple[str, Markup]]
    key: Sequence[tuple[str, str]] = field(default_factory=list)
