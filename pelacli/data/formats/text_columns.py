"""Tables of texts: where they are read from, which columns hold the texts, which rows have one.

The columns go by the names that the community gives them (GLUE, SNLI, STS, sentence-transformers),
or by those that the user gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli.console import warn
from pelacli.data.formats import chat as formats_chat
from pelacli.data.formats import classes as formats_classes
from pelacli.data.formats import rows as formats_rows
from pelacli.data.formats.chat import Chat
from pelacli.data.formats.rows import FILES, Table, some
from pelacli.data.hub import open_split
from pelacli.data.splits import choose_split
from pelacli.data.unknown import unknown_dataset
from pelacli.errors import RequestError

PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("sentence_A", "sentence_B"),
    ("text1", "text2"),
)
SINGLE = ("text", "sentence", "content", "document")
LABELS = ("label", "labels", "gold_label", "score", "similarity_score")


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read.

    Attributes:
        text: of one text, or of two that belong together; None: the first known names there are.
        label: None: the first known name, if any.
    """

    text: tuple[str, ...] | None = None
    label: str | None = None


def read_table(spec: str, split: str) -> Table:
    """The rows of a split of a dataset.

    Raises:
        RequestError: it can't be read, or is empty.
    """
    if spec.startswith("hfds/"):
        rows, split_name = open_split(spec, split)
        if len(rows) == 0:
            raise RequestError(f"{spec}: the split {split_name} is empty")
        columns = list(rows.column_names)
        return Table(rows, columns, f"{spec}, {split_name}", split_name, range(len(rows)), "row")
    file, name = _file(spec, split)
    return formats_rows.read(file, name)


def _file(spec: str, split: str) -> tuple[Path, str | None]:
    """(the file of a split, the split's name; None where a file is all of the data)."""
    path = Path(spec).expanduser()
    if path.is_dir():
        files: dict[str, list[Path]] = {}
        for file in sorted(path.iterdir()):
            if formats_rows.kind(file) in FILES and not file.name.startswith("."):
                files.setdefault(formats_rows.stem(file), []).append(file)
        if not files:
            kinds = ", ".join(FILES)
            raise RequestError(f"{spec}: no text files in it (split names ending in {kinds})")
        name = choose_split(split, list(files), spec)
        if len(files[name]) > 1:
            both = " and ".join(file.name for file in files[name])
            raise RequestError(f"{spec}: {both} are all the split {name!r}; keep one of them there")
        return files[name][0], name
    if not path.is_file():
        raise unknown_dataset(spec)
    if formats_rows.kind(path) not in FILES:
        raise RequestError(
            f"{spec}: text is read from {', '.join(FILES)} files; write JSON with one object a "
            "line into a .jsonl file"
        )
    return path, None


def choose_columns(
    table: Table, wanted: Columns, chat: Chat | None
) -> tuple[tuple[str, ...], str | None, bool]:
    """(names of the text columns, name of the label column or None, whether the first hold
    conversations)."""
    known: list[tuple[str, ...]] = [*PAIRS, *((name,) for name in SINGLE)]
    known += formats_chat.COLUMNS if chat is not None else ()
    if wanted.text is not None:
        text: tuple[str, ...] | None = tuple(_wanted(table, name) for name in wanted.text)
    else:
        text = next((columns for names in known if (columns := _all(table, names))), None)
    if text is None:
        raise RequestError(
            f"{table.origin}: no field 'text', nor another known one; it has "
            f"{some(table.columns)}: name the columns in task_args.text (the first line of a table "
            "must name them)"
        )
    if wanted.label is not None:
        label: str | None = _wanted(table, wanted.label)
    else:
        label = next((name for known in LABELS if (name := column_of(table, known))), None)
    plain_names = tuple(name.strip().casefold() for name in text)
    return text, label, chat is not None and plain_names in formats_chat.COLUMNS


def _all(table: Table, names: Sequence[str]) -> tuple[str, ...] | None:
    """The table's columns of these names, if it has all."""
    columns = [column_of(table, name) for name in names]
    present = tuple(column for column in columns if column is not None)
    return present if len(present) == len(names) else None


def column_of(table: Table, name: str) -> str | None:
    """The table's column of a name; capitals and blanks around it don't count where only one
    column has the name without them."""
    if name in table.columns:
        return name
    alike = [c for c in table.columns if c.strip().casefold() == name.strip().casefold()]
    return alike[0] if len(alike) == 1 else None


def _wanted(table: Table, name: str) -> str:
    column = column_of(table, name)
    if column is None:
        raise RequestError(f"{table.origin}: no column {name!r}; it has {some(table.columns)}")
    return column


def with_text(table: Table, columns: Sequence[str], *, labelled: bool) -> Table:
    """The rows that have a text.

    Args:
        labelled: whether rows without one are left out of hub datasets too. Language models read
            an empty row of those as the end of a text.

    Raises:
        RequestError: a row lacks the field, or has something else than a text there.
    """
    if table.unit == "row":
        _check_hub_texts(table, columns)
        if not labelled:
            return table
    fields = [table.values(column) for column in columns]
    kept = []
    for i, texts in enumerate(zip(*fields, strict=True)):
        for column, text in zip(columns, texts, strict=True):
            if text is None:
                raise RequestError(
                    f"{table.name(i)}: no field {column!r}; fill it in, or leave the line out"
                )
            check_text(text, column, table.name(i))
            if table.unit == "line" and len(table.columns) > 1:
                _check_is_said(text, column, table.name(i))
        if any(text.strip() for text in texts):
            kept.append(i)
    if not kept:
        raise RequestError(f"{table.origin}: no sentences: {some(columns)} is empty in all rows")
    if len(kept) == len(table):
        return table
    empty = next(i for i in range(len(table)) if i >= len(kept) or kept[i] != i)
    warn(
        f"{len(table) - len(kept)} of {len(table)} rows have no text and are left out, the first "
        f"is {table.name(empty)}",
    )
    return table.chosen(kept)


def _check_is_said(text: str, column: str, where: str) -> None:
    if formats_classes.is_missing_word(text):
        raise RequestError(
            f"{where}: {column} is {text!r}, which programs write for a missing text; fill it in, "
            "or leave the line out"
        )


def _check_hub_texts(table: Table, columns: Sequence[str]) -> None:
    """Refuse columns of a hub dataset that hold no texts, and rows without one, before all work."""
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    for column in columns:
        feature = table.rows.features[column]
        if getattr(feature, "dtype", None) not in ("string", "large_string"):
            raise RequestError(
                f"{table.origin}: {column!r} holds no texts but {feature}; name the columns of "
                "text in task_args.text"
            )
        cells = table.rows.with_format("arrow")[column]
        cells = cells[:] if hasattr(cells, "source") else cells
        if cells.null_count:
            row = pc.index(pc.is_null(cells), True).as_py()
            raise RequestError(f"{table.name(row)}: has no {column!r}; leave the row out")


def check_text(text: Any, column: str, where: str) -> None:
    """Refuse what is no text.

    Raises:
        RequestError: it is none, or a word that programs write for a missing one.
    """
    if not isinstance(text, str):
        raise RequestError(
            f"{where}: {column!r} is not a text but {type(text).__name__}; put it in quotes, or "
            "leave it out"
        )
