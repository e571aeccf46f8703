"""Some samples of a dataset, as a dataset: data without splits is trained on in part and judged on
the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from pelacli.data.loader import Batch, Samples
from pelacli.data.seeding import ORDER, words

_SHARE, _MOST = 10, 512  # one of so many samples is held out, and at most so many in all
_FEWEST = 2  # a single one does not say how outputs vary


@dataclass
class Part:
    """The samples of a dataset that have these numbers, in this order; else it is that dataset."""

    whole: Any
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Batch:
        batch: Batch = self.whole[self.indices[index]]
        return batch

    def __getattr__(self, name: str) -> Any:
        if name == "whole":  # while it is being copied, as for workers
            raise AttributeError(name)
        return getattr(self.whole, name)


def divided(dataset: Samples, judged: Samples, seed: int) -> tuple[Part, Part] | None:
    """(what is left to train on, what is held out). None where there are too few samples for both,
    or where they can only be read in turn.

    Held out are those that calibration with the same seed comes to last. So a model that was
    calibrated on the same data was not fitted to them: it holds back the last ninth of what it
    draws (`pelacli.factorize.batches.hold_back`), and that is more than a tenth.

    Args:
        dataset: for training.
        judged: the same samples in the same order, prepared for evaluation.
        seed: decides which are held out.
    """
    if isinstance(dataset.source, IterableDataset) or len(dataset) != len(judged):
        return None
    held_out = min(_MOST, len(dataset) // _SHARE)
    if held_out < _FEWEST:
        return None
    order = np.random.default_rng(words((seed, ORDER, 0))).permutation(len(dataset)).tolist()
    return Part(dataset, sorted(order[:-held_out])), Part(judged, sorted(order[-held_out:]))
