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
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

from pelacli.messages import printable, short_line
from pelacli.system import processes
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
    """How far some work is, and its bar on a terminal.

    Attributes:
        description, done, total, figures: as they would be shown now; total None where unknown.
    """

    def __init__(
        self,
        description: str = "",
        total: float | None = None,
        bar: RichProgress | None = None,
        task: TaskID | None = None,
    ) -> None:
        self.description, self.total = short_line(description), total
        self.done, self.figures = 0.0, ""
        self._before, self._began = 0.0, time.monotonic()
        self._bar, self._task = bar, task
        self._pace: Pace | None = None
        self._then = ""

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
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done)

    def advance(self, n: float = 1, **figures: object) -> None:
        """Move on by n, and show the figures (``loss=0.5, lr=0.001``) below the bar."""
        self.done += n
        if figures:
            text = "  ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in figures.items()
            )
            self.figures = printable(text)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=n, figures=self.figures)
        left = self._pace and self._pace.left(self.done, time.monotonic())
        if left:
            self._pace = None
            timed = f"the first {self.done - self._before:g} of {self.total:g}"
            say(f"{self.description}: {span(*left)} left, as {timed} tell{self._then}")

    def describe(self, text: str) -> None:
        """Change the text before the bar."""
        self.description = short_line(text)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=self.description)

    def line(self) -> str:
        """How far it is, in words: "calibrating: 64 of 256, about 2 min left"."""
        took = time.monotonic() - self._began
        new = self.done - self._before
        if not self.total or not new:
            return f"{self.description}: {duration(took)} so far"
        left = took * max(0.0, (self.total - self.done) / new)
        text = f"{self.description}: {self.done:g} of {self.total:g}, about {duration(left)} left"
        return f"{text}; {self.figures.replace('  ', ', ')}" if self.figures else text


@contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Progress]:
    """Show a progress bar, or a spinner where the total is unknown or 0, while the block runs.

    Off a terminal a line now and then says how far it is.
    """
    if not sys.stderr.isatty():
        info(f"{description} …")
        with _lines_of(Progress(description, total)) as plain:
            yield plain
    elif not verbosity.shows_messages:
        yield Progress(description, total)
    elif not total:
        from rich.text import Text

        with stderr().status(Text(short_line(description))):
            yield Progress(description, total)
    else:
        with _progress_bar() as bar:
            task = bar.add_task(short_line(description), total=total, figures="")
            yield Progress(description, total, bar, task)


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


def duration(seconds: float) -> str:
    """A stretch of time for people: "4 s", "12 min", "1.6 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 99.5 else f"{minutes / 60:.1f} h"


def span(least: float, most: float) -> str:
    """A stretch of time that is not known better, for people: "2 to 3 min", "40 to 60 s"."""
    size, unit = (1.0, "s") if most < 99.5 else (60.0, "min") if most < 5970 else (3600.0, "h")
    low, high = (float(f"{seconds / size:.2g}") for seconds in (least, most))
    return f"about {high:g} {unit}" if low == high else f"{low:g} to {high:g} {unit}"


def _progress_bar() -> RichProgress:
    """rich's progress bar with the remaining time, and a line of figures below it."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress
    from rich.table import Column
    from rich.text import Text

    class BarAboveFigures(RichProgress):
        """The figures would not fit beside the bar in 80 columns."""

        def get_renderables(self) -> Iterator[Any]:
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                if task.fields["figures"]:
                    yield Text(task.fields["figures"], style="dim")

    return BarAboveFigures(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=stderr(),
        transient=True,
        expand=True,
    )


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
