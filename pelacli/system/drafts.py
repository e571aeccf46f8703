"""Write what is new beside its place, and put it there when it is whole. What exists is never
replaced. No torch."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pelacli.errors import RequestError
from pelacli.system import files


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
        OSError: the disk refuses.
    """
    check_is_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield folder / path.name
        beside = sorted(entry.name for entry in folder.iterdir() if entry.name != path.name)
        for name in [*beside, path.name]:  # what `path` refers to is there before it
            check_is_new(path.parent / name)
        for name in [*beside, path.name]:
            files.settle(folder / name)
            (folder / name).rename(path.parent / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
