"""Datasets that can only be read from front to back, shared out over processes and their workers.

All that read a stream together (a *reader* is one worker of one process) come to every sample once.
Where there are shards enough, each reader has its own, and opens no others; or in training, where
their lengths are too unlike for that, so many samples in a row. Where there are fewer shards than
readers, all read all of them, and each decodes only the samples that are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from pelacli.data.bad_samples import Row
from pelacli.data.batches import BAD, Batch, Batches
from pelacli.data.order import Order
from pelacli.data.seeding import ORDER, SAMPLE, seeded, words
from pelacli.errors import PelaError, RequestError
from pelacli.system import processes


@dataclass(frozen=True)
class Reader:
    """One of those that read a stream together.

    Attributes:
        rank, world: of the process, and how many processes there are.
        worker, workers: of the process that loads, and how many of these each process has.
    """

    rank: int = 0
    world: int = 1
    worker: int = 0
    workers: int = 1

    @property
    def number(self) -> int:
        """Of the reader, from 0."""
        return self.rank * self.workers + self.worker

    @property
    def readers(self) -> int:
        """How many there are."""
        return self.world * self.workers

    def has(self, place: int, batch_size: int) -> bool:
        """Whether the sample that has this place in batches of so many is the reader's own: workers
        take batches in turn, processes take the samples of a batch in turn."""
        number, index = divmod(place, batch_size)
        return number % self.workers == self.worker and index % self.world == self.rank


@dataclass(frozen=True)
class Share:
    """What a reader takes of a source in one pass.

    Attributes:
        reader: who it is.
        owns: whether the sample at a position of the source is the reader's; None: the shards are
            dealt out, and what is in the reader's own is.
        takes: how many samples each of the readers wants of the shards that are dealt out; None:
            all that it gets.
        order: key of the order of shards, the same for all readers; None: as they are listed.
        mixing: key of the reader's own shuffling; None: none.
    """

    reader: Reader
    owns: Callable[[int], bool] | None = None
    takes: Sequence[int] | None = None
    order: tuple[int, ...] | None = None
    mixing: tuple[int, ...] | None = None


class Stream(IterableDataset[Any]):
    """Batches of a dataset that can only be read from front to back (WebDataset shards).

    Which samples make a batch depends on how many readers there are. In training each process makes
    as many batches as an epoch has; a reader whose shards hold fewer samples than they are said to,
    or don't say how many, begins again.

    Its dataset's source has ``shards``, how many there are, and ``samples(share)``, which gives raw
    samples in turn.
    """

    def __init__(self, batches: Batches, order: Order) -> None:
        self.batches, self.epoch, self.drop_last = batches, order.epoch, order.drop_last
        self.samples, self.limit, self.shuffle = order.samples, order.limit, order.shuffle
        self.batch_size, self.number_of_batches = order.batch_size, len(order)
        self.rank, self.world = processes.rank_and_size()  # a worker may know nothing of the group
        self.size = -(-order.batch_size // self.world)

    def __iter__(self) -> Iterator[Batch | PelaError]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        reader = Reader(self.rank, self.world, worker, workers)
        items: list[Batch] = []
        number = 0
        bad = Row()
        try:
            for item in islice(self._items(reader, bad), self._wanted(reader)):
                items.append(item)
                if len(items) == self.size:
                    yield self._finished(items, number, reader, bad)
                    items, number, bad.messages = [], number + 1, []
            if items:
                yield self._finished(items, number, reader, bad)
            elif bad.messages:
                yield {BAD: bad.messages}
        except PelaError as error:
            yield error

    def _finished(self, items: list[Batch], number: int, reader: Reader, bad: Row) -> Batch:
        return self.batches.finish(items, self.epoch, number * 1_000 + reader.number, bad)

    def _wanted(self, reader: Reader) -> int | None:
        """How many samples the reader gives; None: all that are its own."""
        if self.drop_last:
            return self._takes(reader.workers)[reader.number]
        if self.limit == self.samples:
            return None
        return sum(reader.has(place, self.batch_size) for place in range(self.limit))

    def _takes(self, workers: int) -> list[int]:
        """How many samples each reader gives in training."""
        batches = [len(range(worker, self.number_of_batches, workers)) for worker in range(workers)]
        return [self.size * number for number in batches] * self.world

    def _items(self, reader: Reader, bad: Row) -> Iterator[Batch]:
        """Samples in turn. One that can't be read, where such are passed over, has its place taken
        by the next one that can, at the end by the last, so that processes go on making as many
        batches as each other."""
        positions = count()
        for passes in count() if self.drop_last else range(1):
            item = None
            for sample in self.batches.dataset.source.samples(self._share(reader, passes)):
                position = next(positions)
                where = f"{self.batches.dataset.spec}, sample {position}"
                try:
                    with seeded(self.batches.seed, SAMPLE, self.epoch, position, reader.number):
                        item = self.batches.dataset.item(sample, where)
                except RequestError as error:
                    if not self.batches.skips_bad:
                        raise
                    bad.add(error)
                    continue
                passed_over = bad.length
                bad.end()
                for _ in range(1 + passed_over):
                    yield item
            if item is not None:
                for _ in range(bad.length):
                    yield item
            elif passes:  # it would begin again for ever
                raise RequestError(
                    f"{self.batches.dataset.spec}: reader {reader.number + 1} of {reader.readers} "
                    f"found no sample, and {self.samples} are said to be there: are "
                    "num_samples and filenames in _info.json right?"
                )

    def _share(self, reader: Reader, passes: int) -> Share:
        """What the reader takes in a pass over the source, counted from 0."""
        order = (self.batches.seed, ORDER, self.epoch, passes) if self.shuffle else None
        mixing = None if order is None else (*order, reader.number)
        limited = self.limit < self.samples and not self.drop_last
        owns = None
        if reader.readers > 1 and (limited or self.batches.dataset.source.shards < reader.readers):
            owns = self._owns(reader)
        # Who begins again has found less than the shards are said to hold.
        takes = self._takes(reader.workers) if self.drop_last and not passes else None
        return Share(reader, owns, takes, order, mixing)

    def _owns(self, reader: Reader) -> Callable[[int], bool]:
        """Says which positions of the source are the reader's. An epoch that leaves some samples
        out leaves out others each time."""
        if not self.drop_last:
            most = self.limit if self.limit < self.samples else None
            return lambda at: (most is None or at < most) and reader.has(at, self.batch_size)
        key = words((self.batches.seed, ORDER, self.epoch))
        places = np.random.default_rng(key).permutation(self.samples)
        end = self.number_of_batches * self.batch_size

        def owns(at: int) -> bool:
            place = int(places[at]) if at < len(places) else end
            return place < end and reader.has(place, self.batch_size)

        return owns
