"""Texts, alone or in pairs, each with a label or none.

From files (`pelacli.data.formats.rows`), from a folder of such files named after splits, and from
hub datasets (`pelacli.data.hub`). The columns go by the names that the community gives them (GLUE,
SNLI, STS, sentence-transformers), or by those that the user gives. Conversations become texts
(`pelacli.data.formats.chat`).
"""

from __future__ import annotations

import math
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
from pelacli.data.splits import SPLITS, choose_split, unknown_dataset
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


@dataclass
class Texts:
    """Raw samples (text or pair of texts, label or None) by index.

    Attributes:
        columns: of the text, of the pair, or of the conversation.
        labels: what the task wants, one per row; None: there are none, or none are wanted.
        classes: names of the classes; None where the labels are scores, or there are none.
        own_classes: the classes of the data, where ``classes`` are those of the model, which may
            have more.
        chat: makes texts of conversations; None where the columns hold texts.
    """

    table: Table
    columns: tuple[str, ...]
    labels: Sequence[int | float] | None = None
    classes: list[str] | None = None
    own_classes: list[str] | None = None
    chat: Chat | None = None

    @property
    def split(self) -> str | None:
        """Name of the split; None where the data has no splits."""
        return self.table.split

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[str | tuple[str, str], int | float | None]:
        row = self.table.rows[int(index)]
        label = None if self.labels is None else self.labels[int(index)]
        fields = [row[column] for column in self.columns]
        if self.chat is not None:
            return self.chat.text(fields, self.name(index)), label
        for column, text in zip(self.columns, fields, strict=True):
            check_text(text, column, self.name(index))
        texts = [text.strip() for text in fields]
        return (texts[0] if len(texts) == 1 else (texts[0], texts[1])), label

    def name(self, index: int) -> str:
        return self.table.name(int(index))


def open_texts(
    spec: str,
    split: str,
    columns: Columns | None = None,
    *,
    unlabelled: bool = False,
    scores: bool = False,
    order: Sequence[str] | None = None,
    chat: Chat | None = None,
) -> Texts:
    """Read one split.

    Classes are numbered as the training split has them, so that all splits agree: names by the
    alphabet, numbers as they are. Rows whose label is −1 (GLUE's word for "none") are left out.

    Args:
        unlabelled: leave the labels out.
        scores: the labels are numbers to be met, no classes.
        order: the model's names of its classes. Where the data's are among them, they are numbered
            as there.
        chat: what makes texts of conversations; None refuses them as columns that nobody knows.

    Raises:
        RequestError: one line that names the file and what is wrong with it.
    """
    columns = columns or Columns()
    table = _read(spec, split)
    names, label, is_chat = _columns(table, columns, chat)
    if is_chat:
        assert chat is not None
        chat.check(table.origin, names)
    else:
        table = _with_text(table, names, labelled=not unlabelled and label is not None)
    texts = Texts(table, names, chat=chat if is_chat else None)
    if unlabelled or label is None:
        return texts
    table, values = _labelled(table, label, scores)
    if not values:
        return texts
    texts.table = table
    if scores:
        texts.labels = [
            formats_classes.score(value, table.name(i)) for i, value in enumerate(values)
        ]
    else:
        _number(texts, spec, label, values, order)
    return texts


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


# Rows --------------------------------------------------------------------------------------------


def _read(spec: str, split: str) -> Table:
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


def _columns(
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
        label = next((name for known in LABELS if (name := _column(table, known))), None)
    plain_names = tuple(name.strip().casefold() for name in text)
    return text, label, chat is not None and plain_names in formats_chat.COLUMNS


def _all(table: Table, names: Sequence[str]) -> tuple[str, ...] | None:
    """The table's columns of these names, if it has all."""
    columns = [_column(table, name) for name in names]
    present = tuple(column for column in columns if column is not None)
    return present if len(present) == len(names) else None


def _column(table: Table, name: str) -> str | None:
    """The table's column of a name; capitals and blanks around it don't count where only one
    column has the name without them."""
    if name in table.columns:
        return name
    alike = [c for c in table.columns if c.strip().casefold() == name.strip().casefold()]
    return alike[0] if len(alike) == 1 else None


def _wanted(table: Table, name: str) -> str:
    column = _column(table, name)
    if column is None:
        raise RequestError(f"{table.origin}: no column {name!r}; it has {some(table.columns)}")
    return column


def _with_text(table: Table, columns: Sequence[str], *, labelled: bool) -> Table:
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


# Labels ------------------------------------------------------------------------------------------


def _labelled(table: Table, label: str, scores: bool) -> tuple[Table, list[Any]]:
    """The rows that have a label, and the labels; none of either where no row has one.

    Raises:
        RequestError: some rows have one and some have not; or a label is no class.
    """
    values = [formats_classes.plain(value) for value in table.values(label)]
    if all(value is None for value in values):
        return table, []
    absent = [
        i for i, value in enumerate(values) if value is None or (not scores and _is_nan(value))
    ]
    if absent:
        raise RequestError(
            f"{table.name(absent[0])}: no {label!r}, which other entries have; fill it in, or "
            "leave the entry out"
        )
    if scores:  # where −1 may be one
        return table, values
    kept = [i for i, value in enumerate(values) if not formats_classes.is_none(value)]
    if not kept:
        return table, []
    for i in kept:
        formats_classes.check(values[i], table.name(i), label)
    if len(kept) == len(values):
        return table, values
    return table.chosen(kept), [values[i] for i in kept]


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _number(
    texts: Texts, spec: str, label: str, values: list[Any], order: Sequence[str] | None
) -> None:
    """Give the texts their class numbers and the names of the classes."""
    table = texts.table
    declared = _declared(table, label)
    names = declared or formats_classes.names_of(*_training_labels(spec, table, label, values))
    model_names = formats_classes.in_order(names, order)
    texts.classes, texts.own_classes = model_names or names, names
    model_numbers = [
        texts.classes.index(formats_classes.spelling(name, model_names)) for name in names
    ]
    known = {} if declared else {name: number for number, name in enumerate(names)}
    numbers = declared is not None or formats_classes.are_numbers(
        names
    )  # else 0 is no class of theirs
    labels = []
    for i, value in enumerate(values):
        number = known.get(str(value), formats_classes.whole_number(value) if numbers else None)
        if number is None or not 0 <= number < len(names):
            raise RequestError(
                f"{table.name(i)}: {label} {value!r} is no class of the training split, which has "
                f"{some(names)}"
            )
        labels.append(model_numbers[number])
    texts.labels = labels


def _declared(table: Table, label: str) -> list[str] | None:
    """Names of the classes that a hub dataset declares itself."""
    feature = getattr(table.rows, "features", {}).get(label)
    names = getattr(feature, "names", None)
    return None if names is None else list(names)


def _training_labels(
    spec: str, table: Table, label: str, values: list[Any]
) -> tuple[list[Any], str]:
    """(labels, their origin) of the training split, where there is one that has some; else those
    of this one, of the whole of it where it is a part ("test[:50%]")."""
    split = table.split
    if split is None or split in SPLITS[0]:
        return values, table.origin
    whole = split.partition("[")[0]
    for name in ("train", whole) if whole != split and "+" not in split else ("train",):
        try:
            other = _read(spec, name)
        except RequestError as error:
            if "no split" in str(error):
                continue
            raise
        column = _column(other, label)
        if column is not None:
            labels = [formats_classes.plain(value) for value in other.values(column)]
            kept = [i for i, v in enumerate(labels)
                    if v is not None and not formats_classes.is_none(v)]  # fmt: skip
            for i in kept:
                formats_classes.check(labels[i], other.name(i), label)
            if kept:
                return [labels[i] for i in kept], other.origin
    return values, table.origin
