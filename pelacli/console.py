"""Standard output is data, standard error is talk.

Talk falls silent when standard error is no terminal (``--verbose`` brings it back) and under
``--quiet``. Errors are always printed: they are the answer, not talk. rich honours ``NO_COLOR``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

from pelacli.system import processes

# Off a terminal nothing may be cut to fit: a pipe has no width.
_PIPE_WIDTH = 1_000


@dataclass
class Talk:
    """How much is said; one value for the process, set by the command line's flags."""

    verbose: bool = False
    quiet: bool = False
    debug: bool = False

    @property
    def on(self) -> bool:
        return processes.is_first() and not self.quiet and (self.verbose or sys.stderr.isatty())


talk = Talk()


def out() -> Console:
    """The rich console on standard output; under a launcher the first process speaks for all."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(width=width, soft_wrap=False, quiet=not processes.is_first())


def err() -> Console:
    """The rich console on standard error."""
    from rich.console import Console

    return Console(stderr=True, width=None if sys.stderr.isatty() else _PIPE_WIDTH)


def emit(document: Any) -> None:
    """Write one JSON document to standard output; NaN and infinity, which it lacks, as null."""
    if not processes.is_first():
        return
    json.dump(_finite(document), sys.stdout, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def say(message: str) -> None:
    """Talk: a line on standard error, if anyone listens."""
    if talk.on:
        err().print(message, markup=False, highlight=False)


def warn(message: str) -> None:
    """Talk that matters: a line on standard error that starts with ``note:``."""
    if talk.on:
        err().print(f"note: {message}", style="yellow", markup=False, highlight=False)


class Progress:
    """One progress bar with an estimate; all calls are no-ops where talk is off."""

    def __init__(self, bar: RichProgress | None = None, task: TaskID | None = None) -> None:
        self._bar, self._task = bar, task

    def advance(self, n: float = 1, **fields: object) -> None:
        """Move on by n; fields (loss=…, lr=…) are shown below the bar."""
        if self._bar is not None and self._task is not None:
            shown = "  ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in fields.items()
            )
            if fields:
                self._bar.update(self._task, advance=n, fields=shown)
            else:
                self._bar.update(self._task, advance=n)

    def describe(self, text: str) -> None:
        """Change the text before the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)


@contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Progress]:
    """A progress bar on standard error for the time of the block; without a total, a spinner."""
    if not talk.on or not sys.stderr.isatty():
        say(f"{description} …")
        yield Progress()
        return
    if total is None:
        with err().status(description):
            yield Progress()
        return
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

    class Bars(RichProgress):
        """The bar, and below it the figures, which would not fit beside it in 80 columns."""

        def get_renderables(self) -> Iterator[Any]:
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                if task.fields["fields"]:
                    yield Text(task.fields["fields"], style="dim")

    with Bars(
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err(),
        transient=True,
        expand=True,
    ) as bar:
        yield Progress(bar, bar.add_task(description, total=total, fields=""))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
