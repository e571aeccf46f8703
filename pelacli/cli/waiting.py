"""Say what is loaded while a command has nothing else to say."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from pelacli import console

_SLOW = "torch"  # what is imported after it takes seconds too
_LINE = f"loading {_SLOW} …"
_PATIENCE = 1.0  # seconds off a terminal


class _Announcer(MetaPathFinder):
    """Finds no module, but says when the slow one is imported for the first time."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == _SLOW:
            sys.meta_path.remove(self)
            if sys.stderr.isatty():
                console.info(_LINE)
            else:
                self._timer = threading.Timer(_PATIENCE, console.say, [_LINE])
                self._timer.daemon = True
                self._timer.start()
        return None

    def stop(self) -> None:
        """Say nothing any more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        if self._timer is not None:
            self._timer.cancel()


@contextmanager
def announced() -> Iterator[None]:
    """While active, the first import of torch is announced: on a terminal at once, else after a
    second."""
    announcer = _Announcer()
    if _SLOW not in sys.modules:
        sys.meta_path.insert(0, announcer)
    try:
        yield
    finally:
        announcer.stop()
