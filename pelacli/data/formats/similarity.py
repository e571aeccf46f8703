"""Two sentences and how alike they are: .jsonl, .csv and .tsv files, hub datasets, and the tables
of the STS benchmark as they were published (tab-separated, without a header: the score is the
fifth field, the sentences follow it)."""

from __future__ import annotations

import csv
from pathlib import Path

from pelacli.data.formats.chat import Chat
from pelacli.data.formats.classes import score
from pelacli.data.formats.rows import Table, kind, records
from pelacli.data.formats.text import Texts, open_texts
from pelacli.data.formats.text_columns import Columns
from pelacli.errors import RequestError

_SCORE, _FIRST, _SECOND = 4, 5, 6  # fields of an STS table


def open_pairs(
    spec: str,
    split: str,
    columns: Columns | None = None,
    *,
    unlabelled: bool = False,
    chat: Chat | None = None,
) -> Texts:
    """Sentences, each alone or with a second one and a score.

    Raises:
        RequestError: one line that names the file and what is wrong with it.
    """
    path = Path(spec).expanduser()
    if path.is_file() and kind(path) in (".csv", ".tsv") and (table := _sts(path)):
        labels = [score(row["score"], table.name(i)) for i, row in enumerate(table.rows)]
        return Texts(table, ("sentence1", "sentence2"), None if unlabelled else labels)
    texts = open_texts(spec, split, columns, unlabelled=True, chat=chat)
    if unlabelled or len(texts.columns) == 1:  # scores belong to pairs
        return texts
    return open_texts(spec, split, columns, scores=True)


def _sts(path: Path) -> Table | None:
    """The rows of an STS table; None where the file is none."""
    rows: list[dict[str, str]] = []
    numbers: list[int] = []
    for number, fields in records(path, "\t", csv.QUOTE_NONE):
        fits = len(fields) > _SECOND
        if not rows and not (fits and _is_number(fields[_SCORE])):
            return None
        if not fits:
            raise RequestError(
                f"{path}, line {number}: {len(fields)} fields; an STS table has a score and "
                f"two sentences in fields {_SCORE + 1} to {_SECOND + 1}"
            )
        numbers.append(number)
        rows.append(
            {"score": fields[_SCORE], "sentence1": fields[_FIRST], "sentence2": fields[_SECOND]}
        )
    return Table(rows, ("score", "sentence1", "sentence2"), str(path), None, numbers)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
