"""The tables of cases in docs/cases name tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLES = sorted((ROOT / "docs" / "cases").glob("*.md"))


def cases(table: Path) -> list[str]:
    """The rows of a table, without its head."""
    rows = [line for line in table.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    return [row for row in rows if not re.match(r"\| ?(case|-)", row)]


@pytest.mark.parametrize("table", TABLES, ids=[table.stem for table in TABLES])
def test_every_test_that_a_table_names_is_there(table):
    rows = cases(table)
    assert rows or table.stem == "README"
    named = [name for row in rows for name in re.findall(r"tests/[\w/]+\.py::\w+", row)]
    for file, name in (one.split("::") for one in dict.fromkeys(named)):
        source = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *def {name}\(", source, re.MULTILINE), f"{file}::{name}"


@pytest.mark.parametrize("table", TABLES, ids=[table.stem for table in TABLES])
def test_every_case_has_a_test(table):
    for row in cases(table):
        last = row.rstrip().rstrip("|").rsplit(" | ", 1)[-1]
        assert "tests/" in last or "the same" in last, row
