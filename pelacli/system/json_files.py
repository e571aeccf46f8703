"""Read JSON that somebody else may have written, edited or cut off. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pelacli.errors import RequestError
from pelacli.messages import one_line
from pelacli.system import own_files

_KINDS = {dict: "an object in braces", list: "a list in brackets"}
_LONGEST = 120  # characters of the parser's message

T = TypeVar("T", dict[str, Any], list[Any])


def read(file: Path, remedy: str, *, pipes: bool = False) -> Any:
    """The value in a JSON file, in UTF-8 with or without a byte-order mark.

    Args:
        remedy: ends every message.
        pipes: a pipe may be read: only where the user names the file itself, as what a stranger's
            directory holds would be waited for.

    Raises:
        RequestError: the file can't be read, or is not JSON.
    """
    try:
        own_files.check_ends(file, pipes=pipes)
        content = file.read_bytes()
    except (OSError, ValueError) as error:  # a name with a NUL character is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{file}: can't be read: {reason}; {remedy}") from None
    try:
        value = json.loads(content.decode("utf-8-sig"))
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError:
        problem = "not a text in UTF-8"
    except UnicodeEncodeError:
        problem = "not valid JSON (half of a surrogate pair)"
    except RecursionError:
        problem = "not valid JSON (it is too deep)"
    except ValueError as error:
        reason = "it is empty" if not content.strip() else one_line(error, _LONGEST)
        problem = f"not valid JSON ({reason})"
    raise RequestError(f"{file}: {problem}; {remedy}")


def read_as(kind: type[T], file: Path, remedy: str) -> T:
    """`read`, of a file that holds an object (``dict``) or a list.

    Raises:
        RequestError: as `read`, or it holds something else.
    """
    value = read(file, remedy)
    if not isinstance(value, kind):
        raise RequestError(f"{file}: expected {_KINDS[kind]}; {remedy}")
    return value
