"""Whether a configuration describes a model of about the size of its weights, before it is built.

A width of a billion where the weights have 32 would fill the memory, or compute for minutes, until
somebody came to compare the shapes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from pelacli.errors import RequestError
from pelacli.models.without_values import on_meta
from pelacli.system import memory

# How many times as much a model may hold as its weights do: tensors may be stored once and be in
# several layers, and a head may be missing.
_TIMES = 8
_ANYWAY = 1 << 26  # numbers that are built in a moment, whatever the weights are
_BYTES = 4  # of a fresh number


def check(
    build: Callable[[], nn.Module],
    stored: Iterable[tuple[int, ...]] | None,
    where: str,
    remedy: str,
) -> None:
    """Build a model without memory, and refuse it where it is out of all proportion.

    A model that can't be built so is not looked at.

    Args:
        build: gives the model, and draws its random numbers.
        stored: the shapes of its weights; None: it gets fresh ones, for which there must be memory.

    Raises:
        RequestError: it has many times as many numbers as its weights, or too many for the memory.
    """
    if torch.get_default_device().type == "meta":  # its shapes are all that is wanted
        return
    numbers = _numbers(build)
    if numbers is None or numbers <= _ANYWAY:
        return
    if stored is None:
        free = memory.available()
        if _BYTES * numbers > free:
            raise RequestError(
                f"{where}: describes a model of {memory.text(_BYTES * numbers)}, and "
                f"{memory.text(free)} of memory are free; {remedy}"
            )
        return
    held = sum(math.prod(shape) for shape in stored)
    if numbers > _TIMES * held:
        raise RequestError(
            f"{where}: describes a model of {numbers:,} numbers, and its weights hold {held:,}; "
            f"{remedy}"
        )


def _numbers(build: Callable[[], nn.Module]) -> int | None:
    """How many numbers a model has; None where it can't be built without memory."""
    with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]), on_meta():
        return sum(parameter.numel() for parameter in build().parameters())
    return None
