"""The fixture `refused`: call the command line, and check all that holds for every refusal."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest


def tree(root: Path) -> dict[str, str]:
    """Every file and directory below a root, with the digest of its content."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "directory"
        for path in sorted(root.rglob("*"))
    }


@pytest.fixture
def refused(pela, here):
    """Call, and check all that holds for every refusal; gives the error line."""

    def check(*args: object, code: int = 2) -> str:
        before = tree(here)
        got, out, err = pela(*args)
        assert got == code, err
        assert out == ""
        assert err.startswith("pela: error: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert "(unexpected;" not in err
        assert tree(here) == before
        return err

    return check
