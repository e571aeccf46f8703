"""What pela prints: results to standard output, messages and progress to standard error.

Messages and progress appear where standard error is a terminal or ``--verbose`` is given; warnings
also without. None does under ``--quiet``. Errors always appear, and `pelacli.__main__` prints them.
Under a launcher only the first process prints. rich honours ``NO_COLOR``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

from pelacli.messages import printable, short_line
from pelacli.system import processes

# A pipe has no width, and nothing may be cut to fit one.
_PIPE_WIDTH = 1_000_000
_DIGITS = 6  # of a measurement in JSON and CSV


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


def warn(message: str) -> None:
    """Print a line on standard error that the user should know of; it starts with ``note:``."""
    if verbosity.shows_warnings:
        stderr().print(
            f"note: {short_line(message)}", style="yellow", markup=False, highlight=False
        )


def info_once(kind: str, message: str) -> None:
    """`info`, if nothing of this kind has been said in this process."""
    if kind not in verbosity.said:
        verbosity.said.add(kind)
        info(message)


def warn_once(kind: str, message: str) -> None:
    """`warn`, if nothing of this kind has been said in this process."""
    if kind not in verbosity.said:
        verbosity.said.add(kind)
        warn(message)


class Progress:
    """One progress bar. Without a bar its methods do nothing."""

    def __init__(self, bar: RichProgress | None = None, task: TaskID | None = None) -> None:
        self._bar, self._task = bar, task

    def advance(self, n: float = 1, **figures: object) -> None:
        """Move on by n, and show the figures (``loss=0.5, lr=0.001``) below the bar."""
        if self._bar is None or self._task is None:
            return
        if figures:
            text = "  ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in figures.items()
            )
            self._bar.update(self._task, advance=n, figures=printable(text))
        else:
            self._bar.update(self._task, advance=n)

    def describe(self, text: str) -> None:
        """Change the text before the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=short_line(text))


@contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Progress]:
    """Show a progress bar, or a spinner where the total is unknown, while the block runs.

    Off a terminal a single line is printed instead.
    """
    if not verbosity.shows_messages or not sys.stderr.isatty():
        info(f"{description} …")
        yield Progress()
    elif total is None:
        from rich.text import Text

        with stderr().status(Text(short_line(description))):
            yield Progress()
    else:
        with _progress_bar() as bar:
            yield Progress(bar, bar.add_task(short_line(description), total=total, figures=""))


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
