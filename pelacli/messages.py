"""Pieces of error messages that many files need: another library's error in one line, and the known
name that a misspelt one probably means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_LONGEST = 300  # characters of another library's message
_SHOWN = 60  # characters of a value that a user gave

# A sentence that sends the reader to what is not shown here ("look at the above report!").
_ELSEWHERE = re.compile(
    r"[^.!?]*\b(?:(?:the|see|messages?|errors?|shown|listed) above|above (?:report|message|error|"
    r"exception|traceback|warning)s?)\b[^.!?]*[.!?]?",
    re.IGNORECASE,
)


def one_line(error: BaseException | str, longest: int = _LONGEST) -> str:
    """The informative line of a library's error, at most ``longest`` characters.

    That is its first line; the second where the first only announces it ("Error(s) in loading:");
    the name of the error's class where it has no message. Sentences about what the library has
    printed elsewhere are left out.
    """
    lines = [" ".join(_ELSEWHERE.sub("", line).split()) for line in str(error).splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        return type(error).__name__
    announced = len(lines) > 1 and lines[0].endswith(":")
    return lines[1 if announced else 0][:longest]


def shown(value: object) -> str:
    """A value that a user gave, as Python writes it, cut to at most 60 characters."""
    try:
        text = repr(value)
    except ValueError:  # a number of more than 4,300 digits
        text = f"a {type(value).__name__} of many digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def closest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The known names most like ``name``, best first; empty where none is like it."""
    return difflib.get_close_matches(name, list(known), n=n, cutoff=0.6)


def did_you_mean(
    name: str,
    known: Iterable[str],
    *,
    n: int = 1,
    quoted: bool = False,
    before: str = "",
    otherwise: str = "",
) -> str:
    """A hint for a misspelt name: "did you mean vit_base?".

    Args:
        n: how many names to offer at most.
        quoted: put each name in quotes, as for the keys of a recipe.
        before: what joins the hint to the message; left out where there is no hint.
        otherwise: the hint where no known name is like it.
    """
    near = closest(name, known, n)
    if not near:
        return otherwise
    return f"{before}did you mean {', '.join(map(repr, near) if quoted else near)}?"
