"""Ctrl-C and SIGTERM let a run end its step and save; they do not kill it in the middle of one."""

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
    """While active, Ctrl-C and SIGTERM are only noted; a second one acts as it did before.

    Yields:
        A function that says whether any process has been asked to stop. All processes must call it.
    """
    received: list[int] = []
    handled = (signal.SIGINT, signal.SIGTERM)
    handlers: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        for handled_number in handled:
            signal.signal(handled_number, handlers[handled_number])

    def is_stop_requested() -> bool:
        if accelerator.num_processes == 1:
            return bool(received)
        votes = torch.tensor([float(bool(received))], device=accelerator.device)
        return bool(accelerator.reduce(votes, "sum").item() > 0)

    if threading.current_thread() is threading.main_thread():  # Python sets handlers there alone
        handlers = {number: signal.signal(number, note) for number in handled}
    try:
        yield is_stop_requested
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
