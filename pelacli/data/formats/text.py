"""Texts, alone or in pairs, each with a label or none.

From .txt (a text a line), .jsonl, .csv and .tsv files, from a folder of such files named after
splits, and from hub datasets (`pelacli.data.hub`). The columns go by the names that
the community gives them (GLUE, SNLI, STS, sentence-transformers), or by those that the user gives.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli.data.formats import classes as formats_classes
from pelacli.data.hub import open_split
from pelacli.data.splits import SPLITS, choose_split, unknown_dataset
from pelacli.errors import RequestError

FILES = (".txt", ".jsonl", ".csv", ".tsv")
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
_NO_LABEL = {"-1", "-"}  # GLUE's and SNLI's words for it


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
        rows: of the file or hub dataset, each a mapping.
        labels: what the task wants, one per row; None: there are none, or none are wanted.
        origin: of the rows, in errors.
        split: name of the split; None where the data has no splits.
        classes: names of the classes; None where the labels are scores, or there are none.
        own_classes: the classes of the data, where ``classes`` are those of the model, which may
            have more.
    """

    rows: Any
    columns: tuple[str, ...]
    labels: Sequence[int | float] | None
    origin: str
    split: str | None
    classes: list[str] | None = None
    own_classes: list[str] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[str | tuple[str, str], int | float | None]:
        row = self.rows[int(index)]
        texts = [row[column] for column in self.columns]
        for column, text in zip(self.columns, texts, strict=True):
            if not isinstance(text, str):
                raise RequestError(
                    f"{self.name(index)}: {column!r} is not a text but {type(text).__name__}"
                )
        texts = [text.strip() for text in texts]
        label = None if self.labels is None else self.labels[int(index)]
        return (texts[0] if len(texts) == 1 else (texts[0], texts[1])), label

    def name(self, index: int) -> str:
        return f"{self.origin}, entry {index + 1}"


def open_texts(
    spec: str,
    split: str,
    columns: Columns | None = None,
    *,
    unlabelled: bool = False,
    scores: bool = False,
    order: Sequence[str] | None = None,
) -> Texts:
    """Read one split.

    Classes are numbered as the training split has them, so that all splits agree: names by the
    alphabet, numbers as they are. Rows whose label is −1 (GLUE's word for "none") are left out.

    Args:
        unlabelled: leave the labels out.
        scores: the labels are numbers to be met, no classes.
        order: the model's names of its classes. Where the data's are among them, they are numbered
            as there.

    Raises:
        RequestError: one line that names the file and what is wrong with it.
    """
    columns = columns or Columns()
    rows, origin, split_name = _read(spec, split)
    texts, label = _columns(rows, origin, columns)
    if not spec.startswith("hfds/"):
        rows = _filled(rows, texts, origin)
    if unlabelled or label is None:
        return Texts(rows, texts, None, origin, split_name)
    values = _values(rows, label)
    none = [i for i, value in enumerate(values) if value in (None, "")]
    if len(none) == len(values):
        return Texts(rows, texts, None, origin, split_name)
    if none:
        raise RequestError(
            f"{origin}, entry {none[0] + 1}: no {label!r}, which other entries have; fill it in"
        )
    kept = [i for i, value in enumerate(values) if scores or str(value) not in _NO_LABEL]
    if not kept:
        return Texts(rows, texts, None, origin, split_name)
    if len(kept) < len(values):
        rows, values = _chosen(rows, kept), [values[i] for i in kept]
    made = Texts(rows, texts, None, origin, split_name)
    if scores:
        made.labels = [score(value, made.name(i)) for i, value in enumerate(values)]
        return made
    declared = _declared(rows, label)
    names = declared or formats_classes.names_of(
        _training_values(spec, split_name, label, values), origin
    )
    model_names = formats_classes.in_order(names, order)
    made.classes, made.own_classes = model_names or names, names
    model_numbers = [
        made.classes.index(formats_classes.spelling(name, model_names)) for name in names
    ]
    known = {} if declared else {name: number for number, name in enumerate(names)}
    numbers = declared is not None or formats_classes.are_numbers(
        names
    )  # else 0 is no class of theirs
    for i, value in enumerate(values):
        number = known.get(str(value), formats_classes.whole_number(value) if numbers else None)
        if number is None or not 0 <= number < len(names):
            raise RequestError(
                f"{made.name(i)}: {label} {value!r} is no class of the training split, which has "
                f"{_some(names)}"
            )
        values[i] = model_numbers[number]
    made.labels = values
    return made


def score(value: Any, where: str) -> float:
    """A finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"{where}: {value!r} is no score; give a number")
    return number


# Rows --------------------------------------------------------------------------------------------


def _read(spec: str, split: str) -> tuple[Any, str, str | None]:
    """(rows, their place in errors, the split's name)."""
    if spec.startswith("hfds/"):
        rows, split_name = open_split(spec, split)
        if len(rows) == 0:
            raise RequestError(f"{spec}: the split {split_name} is empty")
        return rows, f"{spec}, {split_name}", split_name
    file, name = _file(spec, split)
    return rows_of(file), str(file), name


def _file(spec: str, split: str) -> tuple[Path, str | None]:
    path = Path(spec).expanduser()
    if path.is_dir():
        files: dict[str, list[Path]] = {}
        for file in sorted(path.iterdir()):
            if file.suffix in FILES:
                files.setdefault(file.stem, []).append(file)
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
    if path.suffix not in FILES:
        raise RequestError(f"{spec}: text is read from {', '.join(FILES)} files")
    return path, None


def rows_of(path: Path) -> list[dict[str, Any]]:
    """All rows of a file."""
    try:
        rows = list(_rows(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    if not rows:
        raise RequestError(f"{path}: no sentences")
    return rows


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    table = path.suffix in (".csv", ".tsv")
    with path.open(encoding="utf-8-sig", newline="" if table else None) as file:
        if path.suffix == ".txt":
            yield from ({"text": line.strip()} for line in file if line.strip())
        elif path.suffix == ".csv":
            yield from csv.DictReader(file)
        elif path.suffix == ".tsv":  # GLUE's files have quotes in them that mean nothing
            yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            yield from _json_rows(path, file)


def _json_rows(path: Path, file: Any) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            raise RequestError(f"{path}, line {number}: not JSON ({error})") from None
        if row is not None:
            if not isinstance(row, dict):
                raise RequestError(f"{path}, line {number}: not a JSON object")
            yield row


def _columns(rows: Any, origin: str, wanted: Columns) -> tuple[tuple[str, ...], str | None]:
    """(names of the text columns, name of the label column or None)."""
    fields = _fields(rows)
    for name in (*(wanted.text or ()), *([wanted.label] if wanted.label else ())):
        if name not in fields:
            raise RequestError(f"{origin}: no column {name!r}; it has {_some(fields)}")
    known = [names for names in (*PAIRS, *((name,) for name in SINGLE)) if {*names} <= {*fields}]
    text = wanted.text or next(iter(known), None)
    if text is None:
        raise RequestError(
            f"{origin}: no field 'text', nor another known one; it has {_some(fields)}: name the "
            "columns in task_args.text"
        )
    label = wanted.label or next((name for name in LABELS if name in fields), None)
    return tuple(text), label


def _fields(rows: Any) -> list[str]:
    """The columns that any row has."""
    return list(getattr(rows, "column_names", None) or {key: 0 for row in rows for key in row})


def _some(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:8])) + (" …" if len(names) > 8 else "")


def _filled(
    rows: list[dict[str, Any]], columns: Sequence[str], origin: str
) -> list[dict[str, Any]]:
    """The rows that have a text; one without the field is an error."""
    for number, row in enumerate(rows, 1):
        for column in columns:
            if row.get(column) is None:
                raise RequestError(f"{origin}, entry {number}: no field {column!r}")
    kept = [row for row in rows if any(str(row[column]).strip() for column in columns)]
    if not kept:
        raise RequestError(f"{origin}: no sentences")
    return kept


def _chosen(rows: Any, indices: Sequence[int]) -> Any:
    return rows.select(indices) if hasattr(rows, "select") else [rows[i] for i in indices]


# Labels ------------------------------------------------------------------------------------------


def _values(rows: Any, label: str) -> list[Any]:
    return list(rows[label]) if hasattr(rows, "select") else [row.get(label) for row in rows]


def _declared(rows: Any, label: str) -> list[str] | None:
    """Names of the classes that the dataset declares itself."""
    feature = getattr(rows, "features", {}).get(label) if hasattr(rows, "features") else None
    names = getattr(feature, "names", None)
    return None if names is None else list(names)


def _training_values(spec: str, split: str | None, label: str, values: list[Any]) -> list[Any]:
    """The labels of the training split, where there is one that has some; else those of this one,
    of the whole of it where it is a part ("test[:50%]")."""
    if split is None or split in SPLITS[0]:
        return values
    whole = split.partition("[")[0]
    for name in ("train", whole) if whole != split and "+" not in split else ("train",):
        try:
            rows, _, _ = _read(spec, name)
        except RequestError as error:
            if "no split" in str(error):
                continue
            raise
        if label in _fields(rows):
            labels = [v for v in _values(rows, label) if v not in (None, "")]
            labels = [v for v in labels if str(v) not in _NO_LABEL]
            if labels:
                return labels
    return values
