"""Batches made of a dataset's samples: what the processes that load run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pelacli.data import bad_samples
from pelacli.data.bad_samples import Row
from pelacli.data.seeding import BATCH, SAMPLE, seeded
from pelacli.data.tokens import counting_cuts
from pelacli.errors import PelaError, RequestError

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
