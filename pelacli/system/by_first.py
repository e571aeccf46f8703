"""Work that one of the processes that a launcher started does alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pelacli.system import devices, processes, threads

T = TypeVar("T")


def done(work: Callable[[], T], device: str) -> T | None:
    """What the work gives in the first process; None in the others, which wait until it is done.

    They meet before, so that those who wait learn why the first one fails.

    Args:
        device: as in a recipe.
    """
    processes.meet(device)
    result = None
    if processes.is_first():
        # Launchers leave each process one thread.
        cores = devices.cores() if processes.launched() > 1 else None
        with processes.alone(), threads.limited(cores):
            result = work()
    processes.wait(device)
    return result


def told(work: Callable[[], T], device: str) -> T:
    """What the work gives in the first process, in all of them.

    Args:
        work: its result is pickled.
        device: as in a recipe.
    """
    result = done(work, device)
    given: T = processes.all_gather(result)[0]  # type: ignore[assignment]
    return given
