"""Random numbers that depend on a key and on nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    pass


SAMPLE, BATCH, ORDER = 0, 1, 2  # keep the streams of random numbers apart


def seed_all(*key: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (GPUs' too) from a tuple of numbers."""
    python, numpy, high, low = words(key)
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(high << 31 ^ low)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """The same for the time of the block and on the CPU only; what was there before comes back."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    python, numpy, high, low = words(key)
    random.seed(python)
    np.random.seed(numpy)
    torch.default_generator.manual_seed(high << 31 ^ low)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def words(key: Sequence[int]) -> list[int]:
    """Four well mixed 32-bit numbers from any key."""
    entropy = [k % 2**63 for k in key]
    return [int(word) for word in np.random.SeedSequence(entropy).generate_state(4)]
