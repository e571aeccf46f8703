"""Whether the process that wrote something is still at work. No torch."""

from __future__ import annotations

import psutil


def lives(pid: int, until: float) -> bool:
    """Whether a process of this number is alive, and not a later one of the same number.

    Args:
        until: it was started by then, in seconds since 1970.

    Raises:
        psutil.Error: nobody may say.
    """
    try:
        process = psutil.Process(pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= until)
    except psutil.NoSuchProcess:
        return False
