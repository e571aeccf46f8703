"""The messages that the page of troubleshooting explains are messages of the code."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from documentation.pages import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
ROWS = re.findall(r"^\| (?:transformers: )?`([^`]+)`", PAGE.read_text(encoding="utf-8"), re.M)


@cache
def texts():
    """All texts in the code, with "…" where something is put in, a file a string each."""
    return ["\n".join(_texts(ast.parse(file.read_text(encoding="utf-8"))))
            for file in sorted((ROOT / "pelacli").rglob("*.py"))]  # fmt: skip


def _texts(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
            yield "".join(parts).replace("`", "").replace("\n", " ")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.replace("`", "").replace("\n", " ")


def test_there_are_rows():
    assert len(ROWS) > 40


@pytest.mark.parametrize("message", ROWS)
def test_every_message_is_one_that_the_code_writes(message):
    fixed = [re.escape(part) for part in re.split(" ?… ?", message) if part]
    pattern = re.compile("[^\n]*".join(fixed))
    assert any(pattern.search(text) for text in texts())
