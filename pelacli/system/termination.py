"""SIGTERM and SIGHUP end the command line as Ctrl-C does: what it is writing goes. No torch."""

from __future__ import annotations

import atexit
import signal
from types import FrameType
from typing import NoReturn


class Terminated(BaseException):
    """A signal asks the process to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """What shells make of a process that a signal has ended."""
        return 128 + self.number


def raise_on_signals() -> None:
    """Have these signals raise `Terminated`, unless they are ignored, as ``nohup`` has SIGHUP."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(number)


def end_quietly() -> None:
    """From the moment when Python begins to take itself apart, signals end the process at once: an
    exception would find nobody to catch it, and print a traceback."""
    atexit.unregister(_restore)
    atexit.register(_restore)  # the last that is registered is the first that is called


def _restore() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
