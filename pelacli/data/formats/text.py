"""Texts, alone or in pairs, each with a label or none.

From files (`pelacli.data.formats.rows`), from a folder of such files named after splits, and from
hub datasets (`pelacli.data.hub`); see `pelacli.data.formats.text_columns`. Conversations become
texts (`pelacli.data.formats.chat`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pelacli.data.formats import classes as formats_classes
from pelacli.data.formats.chat import Chat
from pelacli.data.formats.rows import Table, some
from pelacli.data.formats.text_columns import (
    Columns,
    check_text,
    choose_columns,
    column_of,
    read_table,
    with_text,
)
from pelacli.data.splits import SPLITS
from pelacli.errors import RequestError


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
    table = read_table(spec, split)
    names, label, is_chat = choose_columns(table, columns, chat)
    if is_chat:
        assert chat is not None
        chat.check(table.origin, names)
    else:
        table = with_text(table, names, labelled=not unlabelled and label is not None)
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
            other = read_table(spec, name)
        except RequestError as error:
            if "no split" in str(error):
                continue
            raise
        column = column_of(other, label)
        if column is not None:
            labels = [formats_classes.plain(value) for value in other.values(column)]
            kept = [i for i, v in enumerate(labels)
                    if v is not None and not formats_classes.is_none(v)]  # fmt: skip
            for i in kept:
                formats_classes.check(labels[i], other.name(i), label)
            if kept:
                return [labels[i] for i in kept], other.origin
    return values, table.origin
