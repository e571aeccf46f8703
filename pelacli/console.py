"""What pela prints: results to standard output, messages and progress to standard error.

Messages and progress appear where standard error is a terminal or ``--verbose`` is given; warnings
also without, and of a long wait a line now and then. None does under ``--quiet``. Errors always
appear, and `pelacli.__main__` prints them. Under a launcher only the first process prints. rich
honours ``NO_COLOR``.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

from pelacli.messages import printable, short_line
from pelacli.system import bytes_done, processes
from pelacli.system.amounts import Unit, duration, share_done, span
from pelacli.system.pace import Pace

# A pipe has no width, and nothing may be cut to fit one.
_PIPE_WIDTH = 1_000_000
_DIGITS = 6  # of a measurement in JSON and CSV

# Off a terminal: seconds until the first line of a wait; how many times as long each next line
# takes to come, and at most.
_FIRST, _SLOWER, _LONGEST = 10.0, 1.5, 600.0


@dataclass
class Verbosity:
    """The flags that every command has: ``--verbose``, ``--quiet`` and ``--debug``; and the kinds
    of warnings that are said only once and have been ``said``."""

    verbose: bool = False
    quiet: bool = False
    debug: bool = False
    said: set[str] = field(default_factory=set)

    @property
    def shows_messages(self) -> bool:
        """Whether messages and progress are printed."""
        return self.shows_warnings and (self.verbose or sys.stderr.isatty())

    @property
    def shows_warnings(self) -> bool:
        """Whether warnings are printed: a script's log wants them as much as a terminal does."""
        return processes.is_first() and not self.quiet


# One for the process; the command line sets it.
verbosity = Verbosity()


def stdout() -> Console:
    """The rich console on standard output; silent in all processes but the first."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(width=width, soft_wrap=False, quiet=not processes.is_first())


def stderr() -> Console:
    """The rich console on standard error."""
    from rich.console import Console

    return Console(stderr=True, width=None if sys.stderr.isatty() else _PIPE_WIDTH)


def print_json(document: Any, *, exact: bool = False) -> None:
    """Print one JSON document on standard output.

    Args:
        exact: the numbers are what a user wrote, and none is rounded; else `figures` says how they
            are printed.
    """
    if not processes.is_first():
        return
    shown = document if exact else figures(document)
    json.dump(shown, sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def info(message: str) -> None:
    """Print a line on standard error about what is going on."""
    if verbosity.shows_messages:
        stderr().print(short_line(message), markup=False, highlight=False)


def say(message: str) -> None:
    """Print a line on standard error, unless ``--quiet`` is given."""
    if verbosity.shows_warnings:
        stderr().print(short_line(message), markup=False, highlight=False)


def warn(message: str, *, of_this_process: bool = False) -> None:
    """Print a line on standard error that the user should know of; it starts with ``note:``.

    Args:
        of_this_process: print it also where this is not the first process of a distributed run, as
            no other one knows of it.
    """
    if verbosity.shows_warnings or (of_this_process and not verbosity.quiet):
        stderr().print(
            f"note: {short_line(message)}", style="yellow", markup=False, highlight=False
        )


def info_once(kind: str, message: str) -> None:
    """`info`, if nothing of this kind has been said in this process."""
    _once(info, kind, message)


def say_once(kind: str, message: str) -> None:
    """`say`, if nothing of this kind has been said in this process."""
    _once(say, kind, message)


def warn_once(kind: str, message: str) -> None:
    """`warn`, if nothing of this kind has been said in this process."""
    _once(warn, kind, message)


def _once(print_: Callable[[str], None], kind: str, message: str) -> None:
    if kind not in verbosity.said:
        verbosity.said.add(kind)
        print_(message)


class Progress:
    """How far some work is.

    Attributes:
        description, done, total, unit, figures: as they would be shown now; total None where it is
            not known.
    """

    def __init__(
        self, description: str = "", total: float | None = None, unit: Unit = Unit.PIECES
    ) -> None:
        self._what = description
        self.figures = ""
        self._pace: Pace | None = None
        self._then = ""
        self.begin("", total, unit)

    def begin(self, part: str, total: float | None, unit: Unit = Unit.PIECES) -> None:
        """Begin a part of the work, whose pace the parts before say nothing of."""
        self.description = short_line(f"{self._what}: {part}" if part else self._what)
        self.total, self.unit = total, unit
        self.done = self._before = 0.0
        self._began = self._last = time.monotonic()

    def reach(self, done: float, total: float) -> None:
        """So much is done by now, of so much, which may still become more: what others count."""
        self.total = total
        self.done, self._last = done, time.monotonic()

    def announce(self, *, calls: int = 1, warm: int = 0, then: str = "") -> None:
        """Say in a line what time is left, once the first parts have been timed.

        Args:
            calls, warm: as `Pace` takes them; a call is one of `advance`.
            then: what comes after the work, whose time is not in it.
        """
        if self.total:
            self._pace = Pace(self.total, self.done, calls=calls, warm=warm)
            self._pace.start(time.monotonic())
            self._then = f"; {then}" if then else ""

    def start_at(self, done: float) -> None:
        """Go on from where an earlier process came, which took no time of this one."""
        self.done = self._before = done

    def advance(self, n: float = 1, **figures: object) -> None:
        """Move on by n, and show the figures (``loss=0.5, lr=0.001``) below the bar."""
        self.done += n
        self._last = time.monotonic()
        if figures:
            text = "  ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in figures.items()
            )
            self.figures = printable(text)
        left = self._pace and self._pace.left(self.done, time.monotonic())
        if left:
            self._pace = None
            timed = f"the first {self.done - self._before:g} of {self.total:g}"
            say(f"{self.description}: {span(*left)} left, as {timed} tell{self._then}")

    def took(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def left(self) -> float | None:
        """Seconds until it ends, at the pace so far; None while nothing tells."""
        new = self.done - self._before
        if not self.total or not new or self.done >= self.total:
            return None
        each = (self._last - self._began) / new
        since = time.monotonic() - self._last
        return max(0.0, each * (self.total - self.done) - since)

    def line(self) -> str:
        """How far it is, in words: "calibrating: 64 of 256, about 2 min left"."""
        left = self.left()
        if not self.total or left is None:
            return f"{self.description}: {duration(self.took())} so far"
        amount = share_done(self.done, self.total, self.unit)
        text = f"{self.description}: {amount}, about {duration(left)} left"
        return f"{text}; {self.figures.replace('  ', ', ')}" if self.figures else text


@contextmanager
def progress(
    description: str, total: float | None = None, unit: Unit = Unit.PIECES
) -> Iterator[Progress]:
    """Show a progress bar, or a spinner as long as the total is unknown or 0, while the block runs.

    Off a terminal a line now and then says how far it is.
    """
    shown = Progress(description, total, unit)
    if not sys.stderr.isatty():
        info(f"{description} …")
        with _lines_of(shown):
            yield shown
    elif not verbosity.shows_messages:
        yield shown
    else:
        from pelacli.system.progress_bar import drawn

        with drawn(shown, stderr()):
            yield shown


@contextmanager
def file_progress(
    description: str, total: float | None = None, unit: Unit = Unit.PIECES
) -> Iterator[Progress]:
    """`progress` of work on a model's files, of which `pelacli.system.bytes_done` hears."""
    with progress(description, total, unit) as shown, bytes_done.watched_by(shown):
        yield shown


@contextmanager
def _lines_of(plain: Progress) -> Iterator[Progress]:
    """Print how far the block is, first after `_FIRST` seconds, then more and more seldom."""
    if not verbosity.shows_warnings:
        yield plain
        return
    done = threading.Event()

    def report() -> None:
        wait = _FIRST
        while not done.wait(wait):
            say(plain.line())
            wait = min(_LONGEST, wait * _SLOWER)

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield plain
    finally:
        done.set()
        reporter.join()


def figures(value: Any) -> Any:
    """A value, or what is nested in it, as scripts get to read it.

    Floats are measurements, and their digits past the sixth are noise. NaN and infinity, which
    JSON lacks, are None. All else, whole numbers and text among it, is as it was.
    """
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: figures(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [figures(item) for item in value]
    return value
