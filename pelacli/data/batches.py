"""Batches made of a dataset's samples: what the processes that load run."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from pelacli.data import bad_samples
from pelacli.data.bad_samples import Row
from pelacli.data.order import Order
from pelacli.data.seeding import BATCH, SAMPLE, seeded
from pelacli.data.tokens import counting_cuts
from pelacli.errors import PelaError, RequestError
from pelacli.system import processes

Batch = dict[str, Any]
# What comes with a batch from a worker, and no user of batches sees:
CUTS = "cuts"  # of its texts
BAD = "bad"  # what is wrong with samples that were passed over


class Samples(Protocol):
    """What a loader needs of a dataset (`pelacli.data.dataset.Dataset` is one)."""

    spec: str
    source: Any
    classes: list[str] | None

    def __len__(self) -> int: ...
    def item(self, sample: Any, where: str) -> Batch: ...
    def __getitem__(self, index: int) -> Batch: ...
    def collate(self, items: list[Batch]) -> Batch: ...


@dataclass
class Batches:
    """A map from keys to batches; this is what workers run.

    An error is returned, not raised, because a DataLoader would bury its one line in a traceback.
    """

    dataset: Samples
    seed: int
    num_classes: int | None
    mix: Any
    smoothing: float
    skips_bad: bool = False

    def __getitem__(self, key: tuple[int, int, list[tuple[int, int]]]) -> Batch | PelaError:
        epoch, number, chosen = key
        bad = Row()
        try:
            items = [self._item(epoch, index, repeat, bad) for index, repeat in chosen]
            return self.finish(items, epoch, number, bad)
        except PelaError as error:
            return error

    def _item(self, epoch: int, index: int, repeat: int, bad: Row) -> Batch:
        """A sample, or the one that takes its place, with the random numbers of its own place."""

        def read(chosen: int) -> Batch:
            with seeded(self.seed, SAMPLE, epoch, index, repeat):
                return self.dataset[chosen]

        if not self.skips_bad:
            return read(index)
        sample: Batch = bad_samples.read_from(self.dataset, index, bad, read)
        return sample

    def finish(self, items: list[Batch], epoch: int, number: int, bad: Row) -> Batch:
        """Collate, check the labels, mix; with what was passed over."""
        batch = self._mixed(items, epoch, number)
        if bad.messages:
            batch[BAD] = bad.messages
        return batch

    def _mixed(self, items: list[Batch], epoch: int, number: int) -> Batch:
        with counting_cuts() as cuts:
            batch = self.dataset.collate(items)
        if cuts.texts:
            batch[CUTS] = cuts
        inputs, labels = batch["inputs"], batch.get("labels")
        if labels is not None and self.num_classes:
            _check(labels, self.num_classes, self.dataset.spec)
        if self.mix is not None:
            if not isinstance(inputs, Tensor):
                raise RequestError(f"{self.dataset.spec}: mixup and cutmix need images")
            with seeded(self.seed, BATCH, epoch, number):
                targets = torch.zeros(len(inputs), dtype=torch.long) if labels is None else labels
                mixed, targets = self.mix(inputs, targets)
            return {"inputs": mixed} if labels is None else {"inputs": mixed, "labels": targets}
        if labels is not None and self.smoothing and self.num_classes:
            from timm.data.mixup import mixup_target

            batch["labels"] = mixup_target(labels, self.num_classes, 1.0, self.smoothing)
        return batch


class Stream(IterableDataset[Any]):
    """Batches of a dataset that can only be read from front to back (WebDataset shards).

    It shards itself over processes and workers, so its batches do depend on how many there are.
    """

    def __init__(self, batches: Batches, order: Order) -> None:
        self.batches, self.epoch, self.drop_last = batches, order.epoch, order.drop_last
        self.size = max(1, order.batch_size // processes.rank_and_size()[1])

    def __iter__(self) -> Iterator[Batch | PelaError]:
        worker = info.id if (info := get_worker_info()) else 0
        source = copy.copy(self.batches.dataset.source)
        if hasattr(source, "reader"):  # a used reader would go on from its last random state
            source.reader = copy.copy(source.reader)
            source.set_epoch(self.epoch)
        items: list[Batch] = []
        number = 0
        bad = Row()
        try:
            for item in self._items(source, worker, bad):
                items.append(item)
                if len(items) == self.size:
                    yield self.batches.finish(items, self.epoch, number * 1_000 + worker, bad)
                    items, number, bad.messages = [], number + 1, []
            if items and not self.drop_last:
                yield self.batches.finish(items, self.epoch, number * 1_000 + worker, bad)
            elif bad.messages:
                yield {BAD: bad.messages}
        except PelaError as error:
            yield error

    def _items(self, source: Iterable[Any], worker: int, bad: Row) -> Iterator[Batch]:
        """Samples in turn. One that can't be read, where such are passed over, has its place taken
        by the next one that can, at the end by the last, so that processes go on making as many
        batches as each other."""
        item = None
        for position, sample in enumerate(source):
            where = f"{self.batches.dataset.spec}, sample {position}"
            try:
                with seeded(self.batches.seed, SAMPLE, self.epoch, position, worker):
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


def _check(labels: Tensor, num_classes: int, spec: str) -> None:
    # Labels of tokens or pixels have values that mean "none"; their task knows them.
    if labels.is_floating_point() or labels.numel() == 0 or labels.ndim > 1:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise RequestError(
            f"{spec}: label {low if low < 0 else high} is outside the model's {num_classes} "
            f"classes (0 to {num_classes - 1})"
        )
