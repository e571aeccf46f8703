"""A line on a terminal that shows how far some work is, drawn again and again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from pelacli.system.amounts import Unit, duration, share_done

if TYPE_CHECKING:
    from rich.console import Console

_A_SECOND = 10  # times that it is drawn


class Progress(Protocol):
    """What is drawn: `pelacli.console.Progress`."""

    description: str
    done: float
    total: float | None
    unit: Unit
    figures: str

    def took(self) -> float: ...
    def left(self) -> float | None: ...


@contextmanager
def drawn(progress: Progress, console: Console) -> Iterator[None]:
    """Draw it while the block runs, and wipe it out then."""
    spinner = Spinner("dots")
    live = Live(
        console=console,
        transient=True,
        refresh_per_second=_A_SECOND,
        get_renderable=lambda: _lines(progress, spinner),
    )
    with live:
        yield


def _lines(progress: Progress, spinner: Spinner) -> Any:
    """A bar with the time that is left, or a spinner where the total is not known; the figures
    would not fit beside it in 80 columns, and stand below."""
    row = Table.grid(padding=(0, 1), expand=bool(progress.total))
    took = Text(duration(progress.took()), style="dim")
    if progress.total:
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        bar = ProgressBar(progress.total, progress.done, animation_time=time.monotonic())
        cells: list[Any] = [progress.description, bar]
        cells.append(share_done(progress.done, progress.total, progress.unit))
        left = progress.left()
        cells += [took] if left is None else [took, f"{duration(left)} left"]
    else:
        cells = [spinner, Text(progress.description), took]
    row.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    return Group(row, Text(progress.figures, style="dim")) if progress.figures else row
