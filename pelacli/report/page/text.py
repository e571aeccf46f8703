"""Names as a page can show them, whatever is in them."""

from __future__ import annotations

import unicodedata
from typing import Any

from markupsafe import Markup

# Control characters; invisible ones, which may turn the direction of what follows; lone surrogates;
# separators of lines.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: str) -> str:
    """A text in which every character can be seen: others stand as their code, as ``\\u202e``."""
    return "".join(_shown(c) if unicodedata.category(c) in _UNSEEN else c for c in text)


def finalize(value: Any) -> Any:
    """What jinja2 prints for a value: text that can be seen, nothing for None, markup as it is."""
    if value is None:
        return ""
    if isinstance(value, Markup):
        return value
    return visible(value) if isinstance(value, str) else value


def lines(text: str) -> str:
    """A text of several lines, each of them `visible`."""
    return "\n".join(map(visible, text.split("\n")))


def _shown(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
