"""Rows of text files: .txt (a text a line), .jsonl, .csv and .tsv, each also packed by gzip (.gz).

A line that is not what its file's form says is refused by its number: what a program would guess
there (a text cut at its comma, a column moved by one) would be learned and judged as if it were
meant.
"""

from __future__ import annotations

import csv
import gzip
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO, Any

from pelacli.data.formats import json_files
from pelacli.errors import RequestError
from pelacli.system import own_files

FILES = (".txt", ".jsonl", ".csv", ".tsv")
_PACKED = ".gz"
_SOME = 8  # names that an error lists


@dataclass(frozen=True)
class Table:
    """Rows with names for their fields.

    Attributes:
        rows: each a mapping, by index: a list, or a `datasets.Dataset`.
        columns: names that any row has.
        origin: of the rows, in errors.
        split: name of the split; None where the data has no splits.
        numbers: of the rows in their source, one each.
        unit: what these numbers count: lines of a file from 1, or rows of a hub dataset from 0.
    """

    rows: Any
    columns: Sequence[str]
    origin: str
    split: str | None
    numbers: Sequence[int]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """The row in words."""
        return f"{self.origin}, {self.unit} {self.numbers[index]}"

    def values(self, column: str) -> list[Any]:
        """A field of all rows; None where a row lacks it."""
        if hasattr(self.rows, "select"):
            return list(self.rows[column])
        return [row.get(column) for row in self.rows]

    def chosen(self, indices: Sequence[int]) -> Table:
        """Some of the rows, with the numbers that they had."""
        if hasattr(self.rows, "select"):
            rows = self.rows.select(indices)
        else:
            rows = [self.rows[i] for i in indices]
        return replace(self, rows=rows, numbers=[self.numbers[i] for i in indices])


def kind(path: Path) -> str:
    """The form of a file, an element of `FILES` if it is one that is read here: .csv of
    "a.CSV.gz"."""
    name = path.with_suffix("") if path.suffix.lower() == _PACKED else path
    return name.suffix.lower()


def stem(path: Path) -> str:
    """The name of a file without its endings."""
    name = path.with_suffix("") if path.suffix.lower() == _PACKED else path
    return name.stem


def read(path: Path, split: str | None = None) -> Table:
    """All rows of a file.

    Raises:
        RequestError: file, line and remedy of what can't be read.
    """
    form = kind(path)
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    for number, row in _READERS[form](path):
        rows.append(row)
        numbers.append(number)
    if not rows:
        raise RequestError(f"{path}: no sentences: it holds no rows; is it the right file?")
    columns = list({key: None for row in rows for key in row})
    return Table(rows, columns, str(path), split, numbers)


def some(names: Sequence[Any]) -> str:
    """The first of the names, for an error."""
    return ", ".join(map(str, names[:_SOME])) + (" …" if len(names) > _SOME else "")


# Lines -------------------------------------------------------------------------------------------


class _Lines:
    """The lines of an opened file, counted."""

    def __init__(self, path: Path, file: Iterable[str]) -> None:
        self.number = 0
        self._path, self._lines = path, iter(file)

    def put_back(self, line: str) -> None:
        """Let the line that was read last come again."""
        if line:
            self._lines = chain([line], self._lines)
            self.number -= 1

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        if "\0" in line:
            raise RequestError(
                f"{self._path}, line {self.number}: has a NUL character, so the file is damaged or "
                "no UTF-8; save it as UTF-8"
            )
        return line


@contextmanager
def _opened(path: Path, newline: str | None) -> Iterator[_Lines]:
    """The lines of a file as UTF-8.

    Raises:
        RequestError: it can't be read as such; the line is named.
    """
    try:
        with _open(path, "rt", encoding="utf-8-sig", newline=newline) as file:
            yield _Lines(path, file)
    except UnicodeDecodeError:
        raise RequestError(_undecodable(path)) from None
    except (OSError, EOFError) as error:
        raise RequestError(f"{path}: cannot be read ({error})") from None


def _open(path: Path, mode: str, **options: Any) -> IO[Any]:
    own_files.check_ends(path, pipes=True)
    if path.suffix.lower() == _PACKED:
        packed: IO[Any] = gzip.open(path, mode, **options)  # type: ignore[assignment]  # noqa: SIM115
        return packed
    return path.open(mode.replace("t", ""), **options)


def _undecodable(path: Path) -> str:
    """Which line is no UTF-8, and what the file probably is."""
    with _open(path, "rb") as file:
        start = file.read(2)
        if start in (b"\xff\xfe", b"\xfe\xff"):
            return f"{path}: is UTF-16; save it as UTF-8"
        if start == b"\x1f\x8b":
            return f"{path}: is packed by gzip; call it {path.name}{_PACKED}"
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return (
                    f"{path}, line {number}: cannot be read as UTF-8 text (byte "
                    f"0x{line[error.start]:02x}); save the file as UTF-8: "
                    f"iconv -f LATIN1 -t UTF-8, if it is Latin-1"
                )
    return f"{path}: cannot be read as UTF-8 text; save it as UTF-8"


def _texts(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A text a line."""
    with _opened(path, None) as lines:
        for line in lines:
            if line.strip():
                yield lines.number, {"text": line.strip()}


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A JSON object a line."""
    with _opened(path, None) as lines:
        for line in lines:
            if not line.strip():
                continue
            where = f"{path}, line {lines.number}"
            row = json_files.parsed(line, where, "a .jsonl file has one object a line")
            if not isinstance(row, dict):
                raise RequestError(
                    f"{where}: not a JSON object but {json_files.kind(row)}; write one object a "
                    "line, and no list around them"
                )
            yield lines.number, row


# Tables ------------------------------------------------------------------------------------------


def _commas(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    return _named(path, ",", csv.QUOTE_MINIMAL)


def _tabs(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    return _named(path, "\t", csv.QUOTE_NONE)  # GLUE's files have quotes that mean nothing


_READERS = {".txt": _texts, ".jsonl": _objects, ".csv": _commas, ".tsv": _tabs}


def _named(path: Path, delimiter: str, quoting: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table by the names in its first line."""
    names: list[str] | None = None
    for number, fields in records(path, delimiter, quoting):
        where = f"{path}, line {number}"
        if names is None:
            names = _header(fields, where, delimiter)
        elif len(fields) != len(names):
            named = [name for name in names if name]
            remedy = (
                "put a text with the separator in it in double quotes"
                if quoting != csv.QUOTE_NONE and len(fields) > len(names)
                else "each line needs as many as the first"
            )
            raise RequestError(
                f"{where}: has {len(fields)} of the {len(names)} fields that the first line names "
                f"({some(named)}); {remedy}"
            )
        else:
            yield number, {n: field for n, field in zip(names, fields, strict=True) if n}


def records(path: Path, delimiter: str, quoting: int) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) of each record of a table; empty ones are left out.

    A table whose first line has semicolons and no commas is one of semicolons, as spreadsheets
    write it where the comma is the decimal point.

    Raises:
        RequestError: quotes that are never closed, or go on after their end; the line is named.
    """
    with _opened(path, "") as lines, _any_length():
        first = next((line for line in lines if line.strip()), "")
        lines.put_back(first)
        if delimiter == "," and ";" in first and "," not in first:
            delimiter = ";"
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
        while True:
            number = lines.number + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise RequestError(f"{path}, line {number}: {_quotes(error)}") from None
            if fields is None:
                return
            if any(field.strip() for field in fields):
                yield number, fields


def _header(fields: Sequence[str], where: str, delimiter: str) -> list[str]:
    """The names of the columns, without blanks around them; "" of one without a name."""
    names = [field.strip() for field in fields]
    if len(names) == 1 and (other := {",": "\t", "\t": ","}[delimiter]) in names[0]:
        word, ending = ("tabs", ".tsv") if other == "\t" else ("commas", ".csv")
        raise RequestError(f"{where}: {word} separate its fields; call the file {ending}")
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise RequestError(f"{where}: names two columns {twice!r}; give each its own name")
    return names


def _quotes(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "a double quote begins a field here, and none ends it; close it, or double it"
    if "expected after" in str(error):
        return "a quoted field goes on after its end; double the quotes within a field"
    return f"no row of a table ({error}); write it anew"


@contextmanager
def _any_length() -> Iterator[None]:
    """The csv module refuses fields beyond 128 KB unless told otherwise."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
