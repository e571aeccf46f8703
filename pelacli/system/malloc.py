"""Where large tensors lie, and that freed memory goes back to the system. No torch.

The C library keeps what is freed for later: by its defaults up to 64 MB in every thread's heap,
and more between blocks that are still in use. Where the peak counts, that is as bad as using it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Of glibc; where there is another C library nothing happens.
_LIBRARY = ctypes.CDLL(None) if os.name == "posix" else None
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of options in malloc.h
_MEGABYTE = 1 << 20


@contextmanager
def tight() -> Iterator[None]:
    """While active, blocks of a megabyte or more are of the system, and go back to it if freed.

    Afterwards the limits are as far as glibc moves them by itself in a process that frees large
    blocks, unless the environment sets them.
    """
    trim()
    if not hasattr(_LIBRARY, "mallopt") or any(name.startswith("MALLOC_") for name in os.environ):
        yield
        return
    assert _LIBRARY is not None
    _LIBRARY.mallopt(_MMAP_THRESHOLD, _MEGABYTE)
    try:
        yield
    finally:
        _LIBRARY.mallopt(_MMAP_THRESHOLD, 32 * _MEGABYTE)
        _LIBRARY.mallopt(_TRIM_THRESHOLD, 64 * _MEGABYTE)


def large_pages() -> None:
    """Let torch put large tensors on huge pages of their own, unless the environment decides it.

    Between the tensors of a training step glibc leaves holes that add up; with this a healing step
    of ViT-B peaks a tenth lower (docs/log/speed-and-memory.md). torch reads it at its first
    allocation.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def trim() -> None:
    """Give back what lies free between blocks from before."""
    if hasattr(_LIBRARY, "malloc_trim"):
        assert _LIBRARY is not None
        _LIBRARY.malloc_trim(0)
