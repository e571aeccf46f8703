"""The JSON document that a command prints."""

from __future__ import annotations

import json


def document(answer):
    """The document of a call of the fixture `pela` that must have succeeded in silence."""
    code, out, err = answer
    assert code == 0, err
    assert err == ""
    return json.loads(out)
