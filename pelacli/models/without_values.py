"""Models of which the shapes alone are wanted."""

from __future__ import annotations

from contextlib import AbstractContextManager


def without_values() -> AbstractContextManager[None]:
    """While active, new modules have no values: they lie on "meta", buffers too."""
    from accelerate import init_empty_weights

    context: AbstractContextManager[None] = init_empty_weights(include_buffers=True)
    return context
