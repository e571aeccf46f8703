"""What libraries write to their logs, and nobody is to read. No torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def at_level(names: Iterable[str], level: int) -> Iterator[None]:
    """While active, loggers of these names pass on nothing below a level."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, own_level in zip(loggers, before, strict=True):
            logger.setLevel(own_level)
