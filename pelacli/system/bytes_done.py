"""How far the work on a model's files is. No torch.

Files are fetched, read, hashed and written far below whoever shows how far a command is. What does
that says here how many bytes there are in all and how many are done; who shows it watches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pelacli.system.amounts import Unit

_SECONDS = 0.5  # between two looks at what nobody counts


class Watcher(Protocol):
    """What shows it; `pelacli.console.Progress` does."""

    def begin(self, part: str, total: float | None, unit: Unit) -> None: ...
    def advance(self, n: float) -> None: ...
    def reach(self, done: float, total: float) -> None: ...


_watchers: list[Watcher] = []


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """While active, the watcher is told."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def begin(part: str, total: float | None) -> None:
    """A part of the work begins, such as "reading", on so many bytes; None where it is not known
    yet."""
    for watcher in _watchers:
        watcher.begin(part, total, Unit.BYTES)


def done(count: float) -> None:
    """So many more bytes are done."""
    for watcher in _watchers:
        watcher.advance(count)


def end() -> None:
    """The part is over, whether all bytes were counted or not; what comes next is not known."""
    for watcher in _watchers:
        watcher.begin("", None, Unit.BYTES)


def reach(so_far: float, total: float) -> None:
    """So many bytes are done by now, of so many."""
    for watcher in _watchers:
        watcher.reach(so_far, total)


@contextmanager
def looked_at(part: str, total: float, so_far: Callable[[], float]) -> Iterator[None]:
    """A part of the work that a library does in one call: while active, a thread looks now and then
    how far it is.

    Args:
        so_far: gives the bytes that are done.
    """
    begin(part, total)
    if not _watchers:
        yield
        return
    over = threading.Event()

    def look() -> None:
        while not over.wait(_SECONDS):
            reach(min(so_far(), total), total)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        end()


def on_disk(folder: Path) -> float:
    """Bytes that the files of a folder take up so far. A file that gets its full length before its
    content counts as far as it is filled."""
    total = 0.0
    for file in folder.iterdir():
        try:
            about = file.stat()
        except FileNotFoundError:  # it has just got another name
            continue
        blocks = getattr(about, "st_blocks", None)
        total += about.st_size if blocks is None else min(about.st_size, 512 * blocks)
    return total
