"""A recipe's file: read as TOML, with the line on which each of its keys begins."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli.errors import RequestError
from pelacli.recipe.keys import Key, has, parse_toml
from pelacli.system import own_files

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
        those before it do not. Lines inside a list or a long text do not end a document, and are
        passed over.
        """
        lines = self.text.split("\n")
        before, after = 0, len(lines)  # the first ``before`` lines lack the key, ``after`` have it
        while after - before > 1:
            middle = (before + after) // 2
            for n in sorted(range(before + 1, after), key=lambda n: abs(n - middle)):
                document = parse_toml(lines[:n])
                if document is not None:
                    before, after = (before, n) if has(document, key) else (n, after)
                    break
            else:
                break
        for n in range(before + 1, after):  # an item of a list that spans several lines
            if has(parse_toml([*lines[:n], "]"]), key):
                return n
        return before + 1


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
