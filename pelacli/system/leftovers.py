"""What a process writes beside an output until it is whole, and what is left when it was killed.

Such a draft, ``.NAME.HOST-123.0a1b2c3d.tmp``, bears its host and the number of its process. So what
a dead process has left is told from what a living one is writing. No torch.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from pelacli.system import living

_HOST = re.sub(r"\W", "_", socket.gethostname())[:20] or "host"
_OLD = 3600  # seconds after which what another host was writing counts as left
_TICK = 2  # seconds that the clocks of files and of processes may differ


def draft(path: Path, suffix: str = "tmp") -> Path:
    """A name beside a path that nobody else has."""
    own = f"{_HOST}-{os.getpid()}"
    return path.with_name(f".{path.name}.{own}.{secrets.token_hex(4)}.{suffix}")


def discard(path: Path) -> None:
    """Remove a file or a folder, if it is there. It first gets the name of a draft: whoever is
    killed on the way leaves no half of it under its own name."""
    doomed = draft(path)
    try:
        path.rename(doomed)
    except FileNotFoundError:
        return
    remove(doomed)


def remove(path: Path) -> None:
    """Remove a draft, as far as the system lets us."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def clear(path: Path) -> None:
    """Remove what dead processes have left beside a path. Where one was killed between taking the
    old one away and putting the new one there, the old one comes back."""
    for left, is_old in list(_left(path)):
        if is_old and not path.exists():
            left.rename(path)
        else:
            remove(left)


def are_beside(path: Path) -> bool:
    """Whether dead processes have left something beside a path."""
    return any(True for _ in _left(path))


def _left(path: Path) -> Iterator[tuple[Path, bool]]:
    """(a draft of a dead process, whether it is what was there before)."""
    name = re.escape(path.name)
    ours = re.compile(rf"\.{name}\.(\w+)-(\d+)\.[0-9a-f]{{8}}\.(tmp|old)")
    older = re.compile(rf"\.{name}\.[a-z0-9_]{{8}}\.(tmp|old)")  # versions that gave no process
    try:
        neighbours = sorted(path.parent.glob(".*"))
    except OSError:
        return
    for file in neighbours:
        if match := ours.fullmatch(file.name):
            host, pid, suffix = match.groups()
            dead = not _writes(int(pid), file) if host == _HOST else _age(file) > _OLD
        elif match := older.fullmatch(file.name):
            dead, suffix = _age(file) > _OLD, match[1]
        else:
            continue
        if dead:
            yield file, suffix == "old"


def _writes(pid: int, path: Path) -> bool:
    """Whether the process that made a draft is alive, and not another one of the same number."""
    try:
        return living.lives(pid, _changed(path) + _TICK)
    except psutil.Error:
        return True


def _age(path: Path) -> float:
    return time.time() - _changed(path)


def _changed(path: Path) -> float:
    """When a file, or the newest in a folder, was last written to."""
    times = [0.0]
    for part in [path, *path.rglob("*")]:
        try:
            times.append(part.lstat().st_mtime)
        except OSError:
            continue
    return max(times)
