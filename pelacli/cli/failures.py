"""What the command line says of an error, and the exit code that goes with it.

Steps raise `pelacli.errors.PelaError` in words of their own. What gets by them here is the system's
refusal of a file, memory that ran out, or a mistake of pela's.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pelacli.errors import CollectedError, PelaError
from pelacli.messages import one_line
from pelacli.system import disk, processes, reasons
from pelacli.system.termination import Terminated

INTERRUPTED = 130  # what shells expect after Ctrl-C
_LONGEST_NAME = 100  # characters of a file's name that a message quotes

# The system's refusals that a user's request causes → the remedy.
_REFUSALS = {
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOENT: "name one that is there",
    errno.ENOTDIR: "a part of its path is a file; name a directory",
    errno.EISDIR: "name a file",
    errno.EEXIST: "choose another name",
    errno.ENOTEMPTY: "choose another name",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.ELOOP: "its links lead in a circle; mend them",
    errno.EINVAL: "choose another name",
}
# … and those that it does not.
_FAILURES = disk.REMEDIES | {errno.EMFILE: "raise the limit of open files (ulimit -n)"}
_OUT_OF_MEMORY = re.compile(
    r"can(?:'t|not) allocate memory|out of memory|not enough memory", re.IGNORECASE
)
# What torch says in the other processes when one of a group has ended. Its error is a plain
# RuntimeError where gloo carries the messages.
_LOST_CONTACT = re.compile(
    r"Dist(?:Backend|Network|Store)Error|\bgloo\b|ncclRemoteError|"
    r"connection (?:closed|reset) by peer",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Failure:
    """What to say, in one line, and the exit code.

    Attributes:
        others: further lines, where several things are wrong.
    """

    message: str
    exit_code: int
    others: Sequence[str] = ()


def describe(error: BaseException) -> Failure:
    """What to say of an error that ended a command."""
    if isinstance(error, CollectedError):
        return Failure(error.messages[0], error.exit_code, error.messages[1:])
    if isinstance(error, PelaError):
        return Failure(str(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Failure("interrupted", INTERRUPTED)
    if isinstance(error, Terminated):
        return Failure(str(error), error.exit_code)
    if (text := _of_parser(error)) is not None:
        # Without a command the parser prints the help and has nothing more to say.
        return Failure(text and text + _hint(error), 2)
    if isinstance(error, OSError) and error.errno is not None:
        return _of_system(error)
    if (number := disk.errno_of(error)) is not None:
        return _of_system(OSError(number, os.strerror(number)))
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return Failure(
            f"the memory is not enough ({one_line(error, 120)}); take smaller batches or images, "
            "or fewer samples",
            1,
        )
    if _is_lost_contact(error):
        return Failure(
            "another process of this run has ended, so this one ends too; what that one says is "
            "the reason",
            1,
        )
    return Failure(f"{type(error).__name__}: {error} (unexpected; --debug shows where)", 1)


def in_group(error: BaseException, failure: Failure) -> Failure:
    """The failure as this one of several processes says it: without a word where another one has
    said the same, or has said why all end."""
    if isinstance(error, Terminated) or _is_lost_contact(error):
        reason = reasons.left()
        return failure if reason is None else Failure("", reason.exit_code)
    reason = reasons.leave(failure.exit_code, failure.message)
    if reason is None or reason.rank == processes.rank_and_size()[0]:
        return failure
    return Failure("", failure.exit_code) if reason.message == failure.message else failure


def _is_lost_contact(error: BaseException) -> bool:
    said = f"{type(error).__name__} {error}"
    return processes.launched() > 1 and _LOST_CONTACT.search(said) is not None


def _of_parser(error: BaseException) -> str | None:
    """What the parser says of a line that it can't read; None where the error is not its own."""
    said = getattr(error, "format_message", None)
    if said is None:
        return None
    if type(error).__name__ != "NoSuchOption":
        return str(said())
    # Each release of typer has words of its own for it.
    option, likely = (getattr(error, name, None) for name in ("option_name", "possibilities"))
    hint = f" (Possible options: {', '.join(sorted(likely))})" if likely else ""
    return f"No such option: {option}{hint}"


def _of_system(error: OSError) -> Failure:
    name = "" if error.filename is None else f"{shortened(str(error.filename))}: "
    reason = error.strerror or type(error).__name__
    remedy = _REFUSALS.get(error.errno or 0) or _FAILURES.get(error.errno or 0)
    message = f"{name}{reason[:1].lower()}{reason[1:]}{'; ' + remedy if remedy else ''}"
    return Failure(message, 2 if error.errno in _REFUSALS else 1)


def shortened(name: str) -> str:
    """A file's name as a message quotes it: of a very long one the beginning."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"


def _hint(error: BaseException) -> str:
    path = getattr(getattr(error, "ctx", None), "command_path", None)
    return f" (see `{path} --help`)" if path else ""
