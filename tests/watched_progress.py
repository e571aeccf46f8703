"""A progress display that tells a test of every advance."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from pelacli import console


def watch(monkeypatch: pytest.MonkeyPatch, do: Callable[[float], object], description: str) -> None:
    """Have a function called with every advance of the displays with this description."""

    def nothing(*args, **how):
        pass

    @contextlib.contextmanager
    def progress(shown, total=None, unit=None):
        def advance(n=1, **fields):
            if shown.startswith(description):
                do(n)

        yield SimpleNamespace(
            advance=advance, start_at=advance, announce=nothing, begin=nothing, reach=nothing
        )

    monkeypatch.setattr(console, "progress", progress)
