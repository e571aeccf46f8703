"""Put a directory or file in place whole: the old one is there, or the new one. No torch."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pelacli.errors import PelaError, RequestError
from pelacli.system import leftovers

_LONGEST_NAME = 200  # bytes; file systems take 255, and temporary neighbours have longer names


def check_place(path: Path) -> None:
    """Refuse a path that nothing can be written to, before any work is done.

    Raises:
        RequestError: its name is too long, it lies below a file, or in a directory that can't be
            written to.
    """
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise RequestError(
            f"{path.name[:40]}…: a name of {len(path.name)} letters is too long; give a shorter one"
        )
    try:
        above = next(parent for parent in path.absolute().parents if parent.exists())
    except OSError as error:
        name = str(path)
        raise RequestError(
            f"{name if len(name) < 100 else name[:100] + '…'}: {error.strerror}; choose another"
        ) from None
    if not above.is_dir():
        raise RequestError(
            f"{path}: {above.name} is a file, not a directory; choose another output"
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise RequestError(f"{path}: {above} can't be written to; choose another output")


@contextmanager
def replacing(path: Path, finish: Callable[[Path], None] = lambda _: None) -> Iterator[Path]:
    """A temporary neighbour of ``path`` that takes its place when the block ends well.

    Args:
        finish: called with the neighbour at the very end, to add what is not to be touched any
            more.
    """
    path = path.resolve()  # a link stays, and what it points to is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = leftovers.draft(path)
    try:
        folder.mkdir()
        yield folder
        settle(folder)
        finish(folder)
        _sync(folder)
        if not path.exists():
            folder.rename(path)
        else:
            _exchange(folder, path)  # now the old one bears the temporary name
        _sync(path.parent)
    finally:
        leftovers.remove(folder)


def settle(path: Path) -> None:
    """Give a file, or those of a directory, the permissions that new files have (safetensors writes
    files that only their owner may read), and make them survive a crash of the machine."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            file.chmod(0o666 & ~_umask())
        _sync(file)
    if path.is_dir():
        _sync(path)


def write(path: Path, content: bytes) -> None:
    """Put a file in place whole; its directory is made where there is none.

    Raises:
        OSError: the disk refuses; what was there is as it was.
    """
    path = path.resolve()  # a link stays, and what it points to is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = leftovers.draft(path)
    try:
        draft.write_bytes(content)
        _sync(draft)
        draft.replace(path)
        _sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def write_or_refuse(path: Path, content: bytes) -> None:
    """As `write`.

    Raises:
        PelaError: the disk refuses; what was there is as it was.
    """
    try:
        write(path, content)
    except OSError as error:
        raise PelaError(f"{path}: can't be written: {error.strerror or error}") from None


def _exchange(new: Path, old: Path) -> None:
    """Swap two directories in one step where the system can, else in two."""
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of Linux
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename and rename(at_cwd, os.fsencode(new), at_cwd, os.fsencode(old), exchange) == 0:
        return
    aside = new.with_suffix(".old")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)


def _sync(path: Path) -> None:
    """Make a file or a directory entry survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
