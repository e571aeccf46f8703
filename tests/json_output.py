"""The JSON document that a command prints."""

from __future__ import annotations

import json


def document(answer):
    """The document of a call of the fixture `pela` that must have succeeded; it may have warned."""
    code, out, err = answer
    assert code == 0, err
    assert all(line.startswith("note: ") for line in err.splitlines()), err
    return json.loads(out)
