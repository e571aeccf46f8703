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


@contextmanager
def part(name: str, total: float | None) -> Iterator[None]:
    """A part of the work, such as "reading", on so many bytes; None where it is not known yet. What
    comes after it is not known."""
    _begin(name, total)
    try:
        yield
    finally:
        _begin("", None)


def _begin(name: str, total: float | None) -> None:
    for watcher in _watchers:
        watcher.begin(name, total, Unit.BYTES)


def done(count: float) -> None:
    """So many more bytes are done."""
    for watcher in _watchers:
        watcher.advance(count)


def reach(so_far: float, total: float) -> None:
    """So many bytes are done by now, of so many."""
    for watcher in _watchers:
        watcher.reach(so_far, total)


@contextmanager
def looked_at(name: str, total: float, so_far: Callable[[], float]) -> Iterator[None]:
    """A `part` that a library does in one call: while active, a thread looks now and then how far
    it is.

    Args:
        so_far: gives the bytes that are done.
    """
    if not _watchers:
        yield
        return
    over = threading.Event()

    def look() -> None:
        while not over.wait(_SECONDS):
            reach(min(so_far(), total), total)

    thread = threading.Thread(target=look, daemon=True)
    with part(name, total):
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


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
