"""Write what is new beside its place, and put it there when it is whole. What exists is never
replaced. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pelacli.errors import RequestError
from pelacli.system import disk, files, leftovers, locks


def check_is_new(path: Path) -> None:
    """Refuse a path at which something is, or to which nothing can be written.

    Raises:
        RequestError: naming it.
    """
    files.check_place(path)
    if os.path.lexists(path):
        raise RequestError(f"{path}: exists; choose another output")


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A path of the same name in a temporary neighbour. What the block has written to it, a file or
    a directory, is moved to ``path`` when it ends well, together with what it has written beside
    it; else nothing is left.

    Raises:
        RequestError: something is at ``path``, or has come there meanwhile.
        LockedError: another process writes there.
        PelaError: the disk refuses.
    """
    with locks.holding(path), disk.refusals_named(path):
        leftovers.clear(path)
        check_is_new(path)
        folder = leftovers.draft(path)
        try:
            folder.mkdir()
            yield folder / path.name
            beside = sorted(entry.name for entry in folder.iterdir() if entry.name != path.name)
            for name in [*beside, path.name]:  # what `path` refers to is there before it
                check_is_new(path.parent / name)
            for name in [*beside, path.name]:
                files.settle(folder / name)
                (folder / name).rename(path.parent / name)
        finally:
            leftovers.remove(folder)
