"""Rows as text: CSV with exact values, Markdown and single values for human eyes.

A row is a plain dict, column → value.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pelacli.console import figures
from pelacli.messages import printable

Row = dict[str, Any]
Style = Literal["table", "json", "csv", "markdown"]

UNKNOWN = "–"


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, with a header; values as in JSON, None as nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: printable(v) if isinstance(v, str) else v for key, v in figures(row).items()}
        for row in rows
    )
    return text.getvalue()


def to_markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; columns of numbers are aligned to the right."""
    columns = cells(rows)
    lines = [
        list(columns),
        ["---:" if is_numeric(column) else "---" for column in columns.values()],
        *zip(*columns.values(), strict=True),
    ]
    return "\n".join(f"| {' | '.join(_escape(cell) for cell in line)} |" for line in lines)


def cells(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Column → the text of its cells, one for each row."""
    return {column: [show(row.get(column)) for row in rows] for column in _columns(rows)}


def is_numeric(column: Iterable[str]) -> bool:
    """Whether every cell of a column begins like a number, or has nothing in it."""
    return all(re.match(r"[-+]?[.\d]|–?$", cell) for cell in column)


def show(value: Any) -> str:
    """A value for human eyes: 12,345; 0.1235; yes; – for what is unknown."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return (
        f"{value:.4g}" if isinstance(value, float) else printable(" ".join(str(value).splitlines()))
    )


def human(number: int | float | None) -> str:
    """A number to three digits with its prefix: 86.6 M, 35.1 G, 1.00 k; small ones as they are."""
    if number is None:
        return UNKNOWN
    size, prefixes = float(number), ["", "k", "M", "G", "T", "P", "E"]
    while float(f"{abs(size):.3g}") >= 1000 and len(prefixes) > 1:
        size, prefixes = size / 1000, prefixes[1:]
    if not prefixes[0]:
        return f"{size:.4g}"
    return f"{f'{size:#.3g}'.rstrip('.')} {prefixes[0]}"


def _columns(rows: Sequence[Row]) -> list[str]:
    """All columns in the order in which they first appear."""
    return list(dict.fromkeys(column for row in rows for column in row))


def _escape(cell: str) -> str:
    text = printable(" ".join(cell.split())).replace("\\", "\\\\").replace("|", "\\|")
    return text.replace("<", "&lt;")
