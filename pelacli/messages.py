"""Pieces of error messages that many files need: another library's error in one line, and the known
name that a misspelt one probably means."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pelacli.errors import PelaError, RequestError, shortened

_LONGEST = 300  # characters of another library's message
_CAUSE = 160  # … of one that is quoted between a place and a remedy
_BARE = (LookupError, AttributeError, TypeError, ArithmeticError)
_SHOWN = 60  # characters of a value that a user gave

# What sends the reader to something that is not shown here ("look at the above report!").
_ELSEWHERE = re.compile(
    r"\b(?:(?:the|see|messages?|errors?|shown|listed) above|above (?:report|message|error|"
    r"exception|traceback|warning)s?)\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[^.!?]+[.!?]?|[.!?]")


def one_line(error: BaseException | str, longest: int = _LONGEST) -> str:
    """The informative line of a library's error, at most ``longest`` characters.

    That is its first line; the second where the first only announces it ("Error(s) in loading:");
    the name of the error's class where it has no message. Sentences about what the library has
    printed elsewhere are left out.
    """
    lines = [_without_elsewhere(line) for line in str(error).splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        return type(error).__name__
    announced = len(lines) > 1 and lines[0].endswith(":")
    return lines[1 if announced else 0][:longest]


def _without_elsewhere(line: str) -> str:
    """A line without the sentences that send the reader elsewhere, in time linear in its length:
    a library may quote all of a stranger's file in it."""
    sentences = _SENTENCE.findall(line)
    return " ".join("".join(s for s in sentences if not _ELSEWHERE.search(s)).split())


@contextmanager
def naming(where: str, remedy: str) -> Iterator[None]:
    """Whatever a library raises over what a user gave it, as a refusal in one line.

    The system's own refusals (a full disk, no permission) and memory that runs out pass.

    Args:
        where: begins the message: the file, or what the user calls the model.
        remedy: ends it.

    Raises:
        RequestError: in place of any other error of the block.
    """
    try:
        yield
    except (PelaError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # These say little without their names: KeyError: 'num_classes'.
        kind = f"{type(error).__name__}: " if isinstance(error, _BARE) and str(error) else ""
        raise RequestError(f"{where}: {kind}{one_line(error, _CAUSE)}; {remedy}") from error


def shown(value: object) -> str:
    """A value that a user gave, as Python writes it, cut to at most 60 characters."""
    try:
        text = repr(value)
    except ValueError:  # a number of more than 4,300 digits
        text = f"a {type(value).__name__} of many digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def printable(text: str, keep: str = "") -> str:
    """A text that does nothing to a terminal: what has no shape of its own is written as Python
    escapes it. Names in a stranger's files can hold codes that move the cursor, hide what follows,
    or turn the direction of reading, and names of files halves of characters.

    Args:
        keep: characters that stay, such as the newlines of a text of several lines.
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or _is_visible(c) else _escaped(c) for c in text)


def _is_visible(character: str) -> bool:
    # Spaces of other widths, and what joins the parts of Indic and Persian words and of emoji.
    return (
        character.isprintable()
        or unicodedata.category(character) == "Zs"
        or (character in "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}")
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def short_line(text: str) -> str:
    """A text in one printable line, and of a very long one beginning and end."""
    return shortened(printable(" ".join(text.split())))


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
