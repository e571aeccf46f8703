"""What lies below a directory, and whether what it calls its file is one: a regular file that lies
in it, by way of links too. A directory from a stranger may name what is not his to read, or what
never ends. No torch."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from pelacli.errors import RequestError


def names_below(directory: Path) -> Iterator[str]:
    """The names of all that lies below a directory and is no folder, relative to it, with slashes,
    in no order. Links are named, and not followed."""
    for folder, folders, files in os.walk(directory):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in [*files, *links]:
            yield Path(folder, name).relative_to(directory).as_posix()


def is_inside(directory: Path, path: Path) -> bool:
    """Whether a file lies in the directory, by way of links too. In the hub's cache, whose
    snapshots are links to the blobs beside them, it lies there with its repository."""
    root = directory.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    return any(path.resolve().is_relative_to(one) for one in roots)


def check(directory: Path, path: Path) -> None:
    """Refuse a path below a directory that is no file of it.

    Raises:
        RequestError: it is a link that leads out of the directory or to nothing, or no regular
            file: a pipe, a device, a folder.
    """
    if not path.exists():  # nor is what a circle of links leads to
        raise RequestError(f"{path}: is not there, or a link to nothing; restore the file")
    if not is_inside(directory, path):
        raise RequestError(
            f"{path}: is a link that leads out of the directory; put the file itself there"
        )
    if not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe or a device"
        raise RequestError(f"{path}: is {what}, not a file; restore the file")


def check_ends(file: Path, *, pipes: bool = False) -> None:
    """Refuse what can be read for ever, or waited for.

    Args:
        pipes: a pipe may be read, as the ``<(…)`` of a shell is one.

    Raises:
        OSError: it is a device, or a pipe.
    """
    is_usual = file.is_file() or file.is_dir() or not file.exists()
    if not is_usual and not (pipes and file.is_fifo()):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(file))
