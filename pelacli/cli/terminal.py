"""Print rows and text on standard output, as they are: brackets in names are not markup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

from pelacli import console
from pelacli.report import tables
from pelacli.report.tables import Row

_NAME_WIDTH = 20  # characters that a column keeps for its longest word on a narrow terminal


def print_table(rows: Sequence[Row]) -> None:
    """Print rows as a table."""
    console.stdout().print(table(rows))


def print_heading(text: str) -> None:
    """Print one line in bold."""
    console.stdout().print(text, markup=False, highlight=False, style="bold")


def print_text(text: str, end: str = "\n") -> None:
    """Print plain text."""
    console.stdout().print(text, markup=False, highlight=False, end=end)


def table(rows: Sequence[Row]) -> Table:
    """Rows as a table for the terminal; columns of numbers are aligned to the right.

    On a narrow terminal a cell goes on in the next line, and nothing is cut off. Numbers and short
    names keep their width as long as there is any to share out.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    columns = tables.cells(rows)
    result = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name, cells in columns.items():
        longest = max((len(word) for cell in cells for word in cell.split()), default=1)
        result.add_column(
            Text(name),
            justify="right" if tables.is_numeric(cells) else "left",
            overflow="fold",
            min_width=min(longest, _NAME_WIDTH),
        )
    for line in zip(*columns.values(), strict=True):
        result.add_row(*(Text(cell) for cell in line))
    return result
