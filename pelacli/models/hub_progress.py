"""How far the hub's client is, without bars of its own: pela shows one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.std import tqdm

from pelacli.system import bytes_done


def silent() -> type[tqdm[Any]]:
    """A kind of bars that nobody sees, for one download, whose bytes `bytes_done` hears of.

    The client keeps up to two for the bytes: what comes over the network, and what is put together
    on the disk. What is known twice counts where it is farther.
    """
    of_bytes: list[tqdm[Any]] = []

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **how: Any) -> None:
            for key in ("name", "disable"):  # the client's own; a disabled bar would not count
                how.pop(key, None)
            super().__init__(*args, **{**how, "file": io.StringIO()})
            if how.get("unit") == "B":
                of_bytes.append(self)

        def display(self, *args: Any, **how: Any) -> None:
            pass

        def update(self, n: float | None = 1) -> bool | None:
            shown: bool | None = super().update(n)
            total = max((bar.total or 0 for bar in of_bytes), default=0)
            if total and self in of_bytes:
                bytes_done.reach(max(bar.n for bar in of_bytes), total)
            return shown

    return Silent


@contextmanager
def no_bars() -> Iterator[None]:
    """While active, the hub's client shows no bars."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
