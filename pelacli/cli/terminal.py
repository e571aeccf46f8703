"""Print rows and text on standard output, as they are: brackets in names are not markup."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

from pelacli import console
from pelacli.messages import printable
from pelacli.report import tables
from pelacli.report.tables import Row

_NAME_WIDTH = 20  # characters that a column keeps for its longest word on a narrow terminal
_JOINTS = "./_-"  # after which a name goes on in the next line
_GAP, _EDGES = 3, 2  # spaces between columns, and beside the outer ones


def print_table(rows: Sequence[Row], dispensable: Sequence[str] = ()) -> None:
    """Print rows as a table.

    Args:
        dispensable: columns that are left out, in this order, where the terminal has no room for
            all; a line says which. What still has no room follows in a table below.
    """
    out = console.stdout()
    rows, left_out = that_fit(rows, out.width, dispensable)
    _print_parts(rows)
    if left_out:
        print_text(f"left out in {out.width} columns: {', '.join(left_out)}")
        print_text("(pela report --format csv has them)")


def that_fit(
    rows: Sequence[Row], width: int, dispensable: Sequence[str]
) -> tuple[list[Row], list[str]]:
    """(the rows without as many of the dispensable columns as it takes to fit, these columns)."""
    columns = tables.cells(rows)
    left_out: list[str] = []
    for name in dispensable:
        if _room(columns, width) >= 0:
            break
        if columns.pop(name, None) is not None:
            left_out.append(name)
    return [{name: row.get(name) for name in columns} for row in rows], left_out


def _print_parts(rows: Sequence[Row]) -> None:
    out = console.stdout()
    parts = parts_that_fit(rows, out.width)
    for number, part in enumerate(parts, 1):
        if len(parts) > 1:
            print_text(f"part {number} of {len(parts)}: the terminal is {out.width} columns wide")
        out.print(table(part, out.width))


def parts_that_fit(rows: Sequence[Row], width: int) -> list[list[Row]]:
    """The rows with as many of their columns as fit a width, then with the others; the first column
    is there each time."""
    columns = tables.cells(rows)
    names = list(columns)
    parts = [names[:1]]
    for name in names[1:]:
        wanted = [*parts[-1], name]
        if len(parts[-1]) > 1 and _room({n: columns[n] for n in wanted}, width) < 0:
            parts.append(names[:1])
        parts[-1].append(name)
    return [[{name: row.get(name) for name in part} for row in rows] for part in parts]


def _room(columns: Mapping[str, Sequence[str]], width: int) -> int:
    """What is left of a terminal's width when each column has its least."""
    least = sum(_least_width(name, cells) for name, cells in columns.items())
    return width - _EDGES - _GAP * (len(columns) - 1) - least


def _least_width(name: str, cells: Sequence[str]) -> int:
    """Of a column: figures stay in one piece, and words up to a certain length."""
    words = [len(word) for text in (name, *cells) for word in text.split()]
    if tables.is_numeric(cells):
        return max([*map(len, cells), *words], default=1)
    return min(max(words, default=1), _NAME_WIDTH)


def print_heading(text: str) -> None:
    """Print one line in bold."""
    console.stdout().print(printable(text), markup=False, highlight=False, style="bold")


def print_text(text: str, end: str = "\n") -> None:
    """Print plain text, of one line or more."""
    console.stdout().print(printable(text, keep="\n\t"), markup=False, highlight=False, end=end)


def table(rows: Sequence[Row], width: int = 1_000_000) -> Table:
    """Rows as a table for the terminal; columns of numbers are aligned to the right.

    On a narrow terminal a name goes on in the next line, after a dot where it has one, and nothing
    is cut off. Figures stay in one piece.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    columns = tables.cells(rows)
    room = _room(columns, width)
    result = Table(box=SIMPLE_HEAD, pad_edge=False)
    shown: list[list[str]] = []
    for name, cells in columns.items():
        least = _least_width(name, cells)
        more = max(0, min(max(map(len, (name, *cells))) - least, room))
        room -= more
        result.add_column(
            Text(printable(name)),
            justify="right" if tables.is_numeric(cells) else "left",
            overflow="fold",
            width=least + more,
        )
        shown.append([_broken(cell, least + more) for cell in cells])
    for line in zip(*shown, strict=True):
        result.add_row(*map(Text, line))
    return result


def _broken(text: str, width: int) -> str:
    """A text whose long words, as names of layers and paths, go on in the next line where they have
    a joint, not in the midst of a part."""
    return " ".join("\n".join(_pieces(word, width)) for word in text.split(" "))


def _pieces(word: str, width: int) -> Iterator[str]:
    while len(word) > width:
        joint = 1 + max(word.rfind(mark, 0, width) for mark in _JOINTS)
        end = joint or width
        yield word[:end]
        word = word[end:]
    yield word
