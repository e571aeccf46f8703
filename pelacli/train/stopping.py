"""Being asked to stop: Ctrl-C and SIGTERM end a step, not a process in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator


@contextmanager
def stopping(accelerator: Accelerator) -> Iterator[Callable[[], bool]]:
    """While in the block, Ctrl-C and SIGTERM are noted and not obeyed; a second one is obeyed.

    Gives a function that tells whether any process has been asked to stop.
    """
    asked: list[int] = []
    handled = (signal.SIGINT, signal.SIGTERM)
    before: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        for one in handled:
            signal.signal(one, before[one])

    def stopped() -> bool:
        if accelerator.num_processes == 1:
            return bool(asked)
        votes = torch.tensor([float(bool(asked))], device=accelerator.device)
        return bool(accelerator.reduce(votes, "sum").item() > 0)

    if threading.current_thread() is threading.main_thread():
        before = {one: signal.signal(one, note) for one in handled}
    try:
        yield stopped
    finally:
        for one in before:
            signal.signal(one, before[one])
