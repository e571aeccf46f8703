"""One process at a time writes to an output.

The lock is the system's (``flock``), which is free again when its process has ended, however that
was. The file ``.NAME.lock`` beside the output says who holds it. No torch.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from pelacli.errors import PelaError
from pelacli.system import living

_LONGEST = 80  # characters of a command that a message quotes
_UNSUPPORTED = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)


class LockedError(PelaError):
    """Another process writes to the output. Exit code 1: the same request may do later."""


@contextmanager
def holding(output: Path) -> Iterator[None]:
    """Keep other processes from an output while the block runs. Folders above it are made, and go
    again if nothing was put there.

    Raises:
        LockedError: another process holds it, or one on another host has not given it back.
    """
    output = output.resolve()
    new = [folder for folder in output.parents if not folder.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    file = output.with_name(f".{output.name}.lock")
    try:
        descriptor = _acquire(file, output)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
            os.close(descriptor)
    finally:
        for folder in new:
            with suppress(OSError):  # somebody has put something there
                folder.rmdir()


def _acquire(file: Path, output: Path) -> int:
    """The open file, locked, with this process's name in it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            is_locked, holder = _lock(descriptor), _read(descriptor)
            if is_locked is not False and not _is_at(descriptor, file):
                os.close(descriptor)  # its holder has given it back, and it is another file now
                continue
            is_free = is_locked is not False and not _may_live(holder, is_locked is None)
            if not is_free:
                raise LockedError(_refusal(file, output, holder, is_locked is False))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_self()).encode(), 0)
            return descriptor
        except BaseException:
            with suppress(OSError):
                os.close(descriptor)
            raise


def _lock(descriptor: int) -> bool | None:
    """Whether the lock is ours now; None on a file system that has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return None


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except OSError:
        return False


def _self() -> dict[str, Any]:
    command = shlex.join(["pela", *sys.argv[1:]])
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": _boot(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command if len(command) <= _LONGEST else f"{command[:_LONGEST]}…",
    }


def _boot() -> str:
    """What tells one running system from all others; containers on one host share it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _read(descriptor: int) -> dict[str, Any]:
    """The holder's name in the file; empty where it has not written it yet."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _may_live(holder: dict[str, Any], without_locks: bool) -> bool:
    """Whether the last holder may still be at work although nobody has the lock: on another host,
    of whose locks a shared file system may not tell us, or where there are no locks.

    Args:
        without_locks: the file system has none.
    """
    if not holder.get("host"):
        return False
    if holder["host"] != socket.gethostname():
        return bool(holder.get("boot") != _boot())
    is_since_boot = holder.get("boot") == _boot()
    return without_locks and is_since_boot and _is_alive(holder.get("pid"), holder.get("since"))


def _is_alive(pid: Any, since: Any) -> bool:
    """Whether a process of this number lives that was there when the lock was taken."""
    try:
        return living.lives(pid, datetime.fromisoformat(since).timestamp() + 1)
    except (psutil.Error, TypeError, ValueError):
        return False


def _refusal(file: Path, output: Path, holder: dict[str, Any], is_taken: bool) -> str:
    who = "another process"
    if holder:
        who = (
            f"process {holder.get('pid')} on {holder.get('host')} "
            f"({holder.get('command')}, since {holder.get('since')})"
        )
    remedy = "wait until it has ended, or choose another output"
    if not is_taken:
        remedy = f"if it has ended, remove {file}"
    return f"{output}: {who} is writing there; {remedy}"
