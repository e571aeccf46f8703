"""Which samples make which batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    pass

from pelacli.data.seeding import ORDER
from pelacli.data.seeding import words as _words
from pelacli.system import processes


@dataclass
class Order:
    """Which samples make which batch: the DataLoader's sampler, in the parent process.

    It yields keys (epoch, number, [(index, copy), …]), for this process's share of each batch.
    """

    samples: int
    limit: int
    batch_size: int
    seed: int
    shuffle: bool
    drop_last: bool
    repeats: int
    epoch: int = 0
    start: int = 0

    def __len__(self) -> int:
        full, rest = divmod(self.limit, self.batch_size)
        return full if self.drop_last else full + bool(rest)

    def __iter__(self) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        rank, world = processes.rank_and_size()
        order = np.arange(self.samples)
        if self.shuffle:
            words = _words((self.seed, ORDER, self.epoch))
            order = np.random.default_rng(words).permutation(order)
        order = order[: self.limit].repeat(self.repeats)[: self.limit]
        for number in range(self.start, len(self)):
            first = number * self.batch_size
            chunk = order[first : first + self.batch_size].tolist()
            pairs = [(index, (first + i) % self.repeats) for i, index in enumerate(chunk)]
            if share := _share(pairs, rank, world, self.drop_last):
                yield self.epoch, number, share


def _share(batch: list[Any], rank: int, world: int, training: bool) -> list[Any]:
    """This process's part of a batch.

    In training, parts are of equal size, and a sample and its mirror image in the batch, with
    which mixup pairs it, stay together. In evaluation nothing is added to make parts equal: a
    sample that is counted twice would shift the metrics.
    """
    if not training:
        return batch[rank::world]
    half = len(batch) // (2 * world)
    if half * 2 * world != len(batch):
        return batch[rank * len(batch) // world : (rank + 1) * len(batch) // world]
    first, last = rank * half, (rank + 1) * half
    return batch[first:last] + batch[len(batch) - last : len(batch) - first]
