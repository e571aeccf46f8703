"""What the system says when it can't write, in whichever library that was. No torch."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pelacli.errors import PelaError

# The refusals that no request causes → the remedy.
REMEDIES = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some space, or choose another disk",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or choose another disk",
    errno.EIO: "the disk or its connection fails; choose another disk",
    errno.ESTALE: "its file system has changed meanwhile; run it again",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOENT: "its folder has gone meanwhile; run it again",
}

# "(os error 27)"; safetensors before 0.6 writes "Os { code: 27, …"
_QUOTED = re.compile(r"\(os error (\d+)\)|\bOs \{ code: (\d+),")


def errno_of(error: BaseException) -> int | None:
    """The number of the system's refusal; safetensors quotes it only. None of any other error."""
    if isinstance(error, OSError):
        return error.errno
    quoted = _QUOTED.search(str(error))
    return int(quoted[1] or quoted[2]) if quoted else None


@contextmanager
def refusals_named(path: Path) -> Iterator[None]:
    """Say what could not be written and what helps, where the system refuses to write in the block.

    Raises:
        PelaError: it does. All other errors stay as they are.
    """
    try:
        yield
    except PelaError:
        raise
    except Exception as error:
        number = errno_of(error)
        if number is None and not isinstance(error, OSError):
            raise
        reason = str(error) if number is None else os.strerror(number)
        remedy = f"; {REMEDIES[number]}" if number in REMEDIES else ""
        raise PelaError(f"{path}: can't be written: {reason}{remedy}") from None
