"""A recipe's file: read as TOML, with the line on which each of its keys begins."""

from __future__ import annotations

import bisect
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pelacli.errors import RequestError
from pelacli.recipe.keys import Key, has, parse_toml
from pelacli.system import own_files

# What decides where a statement ends: texts, comments, brackets and ends of lines.
_TOKEN = re.compile(
    r"""\"{3}(?:\\.|[^\\])*?\"{3}(?!")|'{3}.*?'{3}(?!')|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|\#[^\n]*|[][{}\n]""",
    re.DOTALL,
)
_IN_TEXT = 10**6
_TOO_DEEP = re.compile(r"""^[ \t]*\[*[ \t]*(?:[\w"'-]+[ \t]*\.[ \t]*){50}""", re.MULTILINE)


@dataclass(frozen=True)
class TomlFile:
    """A file and what it says.

    Attributes:
        text: with "\\n" as the end of every line.
        document: the text as TOML.
    """

    path: Path
    text: str
    document: dict[str, Any]

    def line_of(self, key: Key) -> int:
        """The line, from 1, on which a key of the document begins.

        It is the line with which the document gets the key: the lines up to it have the key, and
        those before it do not. So that a file of many thousand lines is parsed a few times only,
        these lines are found by halving.
        """
        lines = self.text.split("\n")

        def has_key(n: int, end: Sequence[str] = ()) -> bool:
            return has(parse_toml([*lines[:n], *end]), key)

        # Inside a list or a long text a document can't end.
        ends = [0, *(n for n, inside in enumerate(self._depths, 1) if not inside), len(lines)]
        at = bisect.bisect_left(ends, True, lo=1, hi=len(ends) - 1, key=has_key)
        before, after = ends[at - 1], ends[at]
        # An item of a list that spans several lines.
        items = [n for n in range(before + 1, after) if self._depths[n - 1] == 1]
        at = bisect.bisect_left(items, True, key=lambda n: has_key(n, ["]"]))
        return items[at] if at < len(items) else before + 1

    @cached_property
    def _depths(self) -> list[int]:
        """In how many brackets each line ends; one that ends in a long text counts as in many."""
        depths, depth = [], 0
        for token in _TOKEN.finditer(self.text):
            first = token[0][0]
            if first == "\n":
                depths.append(depth)
            elif first in "[{":
                depth += 1
            elif first in "]}":
                depth -= 1
            else:
                depths += [_IN_TEXT] * token[0].count("\n")
        return [*depths, depth]


def read(path: Path) -> TomlFile:
    """Read a recipe's file, with or without a byte-order mark and with any ends of lines.

    Raises:
        RequestError: there is no such file, it can't be read, or it is not TOML.
    """
    try:
        own_files.check_ends(path, pipes=True)
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
        if _TOO_DEEP.search(text):  # which takes the parser minutes
            raise RequestError(f"{path}: a key has more than 50 parts; recipes have no such key")
        return TomlFile(path, text, tomllib.loads(text))
    except FileNotFoundError:
        raise RequestError(
            f"{path}: there is no such recipe; `pela recipes list` shows some"
        ) from None
    except IsADirectoryError:
        raise RequestError(f"{path}: is a directory; name the recipe file in it") from None
    except OSError as error:
        raise RequestError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path}: not a text file; a recipe is TOML in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise RequestError(_syntax_error(path, text, str(error))) from None
    except (ValueError, RecursionError):
        raise RequestError(
            f"{path}: not valid TOML: a number is too long or a list too deep"
        ) from None


def _syntax_error(path: Path, text: str, message: str) -> str:
    """The parser's message with the file, the line and, for the most common slip, the remedy."""
    problem, _, position = message.partition(" (at ")
    match = re.match(r"line (\d+)", position)
    line = int(match[1]) if match else len(text.rstrip().split("\n"))
    # The most common slip is a missing quote: model = vit_base, ratio = 2/3.
    unquoted = match and problem.startswith(("Invalid value", "Expected newline"))
    remedy = "; text and fractions need quotes" if unquoted else ""
    problem = problem.replace("Cannot overwrite a value", "this key is there already")
    return f"{path}:{line}: not valid TOML: {problem[:1].lower()}{problem[1:]}{remedy}"
