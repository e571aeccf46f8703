"""Batches whose content depends on (seed, epoch, number) and on nothing else.

What is random about a sample comes from (seed, epoch, index), what is random about a batch (mixup)
from (seed, epoch, number), and the order from (seed, epoch). So neither the number of workers nor
of processes changes what is trained on, and a run continues in the middle of an epoch without
loading, or even drawing, what came before.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

if TYPE_CHECKING:
    from pelacli.recipe.data import Augment

from pelacli.console import warn
from pelacli.data import bad_samples
from pelacli.data.bad_samples import PassedOver
from pelacli.data.batches import BAD, CUTS, Batch, Batches, Samples
from pelacli.data.order import Order
from pelacli.data.streams import Stream
from pelacli.data.tokens import Cuts
from pelacli.errors import PelaError, RequestError
from pelacli.system import devices, processes

__all__ = ["Batch", "Loader", "Samples", "loader"]


def loader(
    dataset: Samples,
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = False,
    drop_last: bool = False,
    workers: int = 0,
    num_classes: int | None = None,
    augment: Augment | None = None,
    limit: int | None = None,
    pinned: bool | None = None,
    skips_bad: bool = False,
) -> Loader:
    """Batches ``{"inputs": …, "labels": …}`` of a dataset.

    Args:
        batch_size: samples per batch over all processes together. Each process of a distributed
            run gets its share of every batch.
        shuffle: a new order each epoch. Without it the order is the dataset's.
        drop_last: only full batches, as training wants. A dataset smaller than a batch then makes
            one batch of all it has.
        workers: processes that load; 0 loads in this one. More than there are cores would wait for
            each other, so there are at most so many, but for a stream, whose batches depend on it.
        num_classes: the model's. Labels outside of it are refused.
        augment: mixup, cutmix, label smoothing (labels become soft, [B, num_classes]) and
            repeated augmentation are applied to batches, here. The rest belongs to the dataset.
        limit: only the first so many samples (of the shuffled order).
        pinned: whether batches lie where a GPU can fetch them; by default where there is one.
        skips_bad: pass over samples that can't be read, and say so; see `pelacli.data.bad_samples`.

    Raises:
        RequestError: the dataset is empty or does not fit the model's classes or the batch size;
            or there are more processes than samples in a batch.
    """
    if len(dataset) == 0:
        raise RequestError(f"{dataset.spec}: no samples")
    if num_classes and dataset.classes and len(dataset.classes) > num_classes:
        raise RequestError(
            f"{dataset.spec}: {len(dataset.classes)} classes, but the model has {num_classes} "
            f"outputs: set num_classes = {len(dataset.classes)}"
        )
    size = min(len(dataset), limit or len(dataset))
    mix = _mixing(augment, num_classes)
    smoothing = getattr(augment, "smoothing", 0.0) or 0.0
    batch_size = _for_all(
        dataset.spec, batch_size, size, drop_last=drop_last, pairs=mix is not None
    )
    repeats = getattr(augment, "repeats", None) or 1
    order = Order(len(dataset), size, batch_size, seed, shuffle, drop_last, repeats)
    if not isinstance(dataset.source, IterableDataset):
        workers = min(workers, devices.cores())
    batches = Batches(dataset, seed, num_classes, mix, smoothing, skips_bad)
    return Loader(batches, order, workers, pinned)


class Loader:
    """Iterates the batches of one epoch; `loader` makes one.

    Attributes:
        dataset, num_classes: as given.
        batch_size: over all processes.
        passed_over: the samples that could not be read.
    """

    def __init__(
        self, batches: Batches, order: Order, workers: int, pinned: bool | None = None
    ) -> None:
        self.dataset, self.num_classes = batches.dataset, batches.num_classes
        self.batch_size = order.batch_size
        self.order, self._batches, self._workers = order, batches, workers
        self._pinned = torch.cuda.is_available() if pinned is None else pinned
        self._torch: DataLoader[Any] | None = None
        self.passed_over = PassedOver(self.dataset.spec)
        self._has_warned = False  # that texts were cut
        self._advance: Callable[[], None] | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.order)

    @contextmanager
    def watched(self, advance: Callable[[], None]) -> Iterator[None]:
        """While active, ``advance`` is called whenever a batch has been worked on."""
        self._advance = advance
        try:
            yield
        finally:
            self._advance = None

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, and the batch of it that comes first."""
        self.order.epoch, self.order.start = epoch, start

    def __iter__(self) -> Iterator[Batch]:
        cut = Cuts()
        try:
            for batch in self._loaded():
                if isinstance(batch, PelaError):
                    self.close()
                    raise batch
                cuts = batch.pop(CUTS, None)
                if cuts is not None:
                    cut.texts, cut.limit = cut.texts + cuts.texts, cuts.limit
                yield batch
                if self._advance is not None:
                    self._advance()
        finally:
            self._tell(cut)
            self.passed_over.count(len(self.dataset))

    def first_sample(self) -> Batch:
        """The first sample of the dataset that can be read, if bad ones are passed over."""
        sample: Batch = bad_samples.first(self.dataset, skips=self._batches.skips_bad)
        return sample

    def _tell(self, cut: Cuts) -> None:
        """Say how many texts of the first epoch were cut."""
        if cut.texts and not self._has_warned:
            self._has_warned = True
            warn(
                f"{self.dataset.spec}: texts that are longer than the {cut.limit} tokens that the "
                f"model reads, and were cut there: {cut.texts}",
            )

    def close(self) -> None:
        """Send the workers home. Iterating again calls new ones."""
        self._torch = None

    def _loaded(self) -> Iterable[Any]:
        if isinstance(self.dataset.source, IterableDataset):
            stream = Stream(self._batches, self.order)
            return islice(self._noted(self._open(stream)), self.order.start, None)
        if self._torch is None:  # kept, and its workers with it, from epoch to epoch
            self._torch = self._open(
                self._batches, sampler=self.order, persistent_workers=self._workers > 0
            )
        return self._noted(self._torch)

    def _noted(self, loaded: Iterable[Any]) -> Iterator[Any]:
        """The batches, when what was passed over for them has been said."""
        for batch in loaded:
            if isinstance(batch, dict):
                self.passed_over.note(batch.pop(BAD, ()))
            if batch != {}:  # only word of what was passed over at the end of a stream
                yield batch

    def _open(self, batches: Any, **options: Any) -> DataLoader[Any]:
        seed = self._batches.seed % 2**62 + self.order.epoch
        return DataLoader(
            batches,
            batch_size=None,
            num_workers=self._workers,
            worker_init_fn=_outlive_signals,
            pin_memory=self._pinned,
            generator=torch.Generator().manual_seed(seed),
            **options,
        )


def _for_all(spec: str, batch_size: int, size: int, *, drop_last: bool, pairs: bool) -> int:
    """The batch size over all processes: all of the samples where they are fewer than a batch.

    Args:
        size: how many samples there are.
        drop_last: only full batches. Each process then has the same number of samples in each.
        pairs: whether samples are mixed in pairs, in each process.

    Raises:
        RequestError: some process would have no samples, or not as many as the others.
    """
    world = processes.rank_and_size()[1]
    if not (drop_last or pairs):
        if min(batch_size, size) < world:  # who has none would not meet the others
            raise RequestError(
                f"{spec}: {min(batch_size, size)} samples a batch for {world} processes; "
                "each needs one: raise batch_size, or launch fewer"
            )
        return batch_size
    together = 2 * world if pairs else world
    if (drop_last and size < batch_size) or (pairs and batch_size == size):
        if size < together:
            each = "a pair, as mixup and cutmix take them" if pairs else "one"
            remedy = "give more samples" if world == 1 else "launch fewer, or give more samples"
            raise RequestError(
                f"{spec}: {size} samples for {world} processes; each needs {each}: {remedy}"
            )
        return size // together * together
    if pairs and batch_size % together:
        what = "is odd" if world == 1 else f"does not divide by {together}, two a process"
        raise RequestError(f"mixup and cutmix pair samples: batch_size {batch_size} {what}")
    if batch_size % together:
        raise RequestError(f"batch_size {batch_size} does not divide by {world} processes")
    return batch_size


def _mixing(augment: Augment | None, num_classes: int | None) -> Any:
    """timm's Mixup, or None where neither mixup nor cutmix is asked for."""
    mixup, cutmix = getattr(augment, "mixup", 0.0) or 0.0, getattr(augment, "cutmix", 0.0) or 0.0
    if augment is None or getattr(augment, "none", False) or not (mixup or cutmix):
        return None
    from timm.data import Mixup

    return Mixup(
        mixup_alpha=mixup,
        cutmix_alpha=cutmix,
        prob=augment.mixup_prob,
        label_smoothing=augment.smoothing,
        num_classes=num_classes or 1,
    )


def _outlive_signals(worker: int) -> None:
    """Ctrl-C and SIGTERM may reach every process of the group, but the parent, which then ends its
    step and saves, still wants its batches: a worker goes on for some seconds after SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(10))
