"""Two sentences and how alike they are: .jsonl, .csv and .tsv files, hub datasets, and the tables
of the STS benchmark as they were published (tab-separated, without a header: the score is the
fifth field, the sentences follow it)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from pelacli.data.formats.text import Columns, Texts, open_texts, score
from pelacli.errors import RequestError

_SCORE, _FIRST, _SECOND = 4, 5, 6  # fields of an STS table


def open_pairs(
    spec: str, split: str, columns: Columns | None = None, *, unlabelled: bool = False
) -> Texts:
    """Sentences, each alone or with a second one and a score.

    Raises:
        RequestError: one line that names the file and what is wrong with it.
    """
    path = Path(spec).expanduser()
    if path.is_file() and path.suffix in (".csv", ".tsv") and (rows := _sts(path)):
        labels = [score(row["score"], f"{path}, line {n}") for n, row in enumerate(rows, 1)]
        names = ("sentence1", "sentence2")
        return Texts(rows, names, None if unlabelled else labels, str(path), None)
    texts = open_texts(spec, split, columns, unlabelled=True)
    if unlabelled or len(texts.columns) == 1:  # scores belong to pairs
        return texts
    return open_texts(spec, split, columns, scores=True)


def _sts(path: Path) -> list[dict[str, Any]] | None:
    """The rows of an STS table; None where the file is none."""
    rows = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, line in enumerate(
                csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), 1
            ):
                fits = len(line) > _SECOND
                if number == 1 and not (fits and _is_number(line[_SCORE])):
                    return None
                if not fits:
                    raise RequestError(
                        f"{path}, line {number}: {len(line)} fields; an STS table has a score and "
                        f"two sentences in fields {_SCORE + 1} to {_SECOND + 1}"
                    )
                rows.append(
                    {
                        "score": line[_SCORE],
                        "sentence1": line[_FIRST],
                        "sentence2": line[_SECOND],
                    }
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
