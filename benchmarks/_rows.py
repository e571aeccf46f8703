"""Results as JSON lines, appended as they come: what was stopped goes on from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read(file: Path) -> list[Row]:
    """The rows of a file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def append(file: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a file, which is made where it is not there."""
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")
