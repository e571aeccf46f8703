"""Calibration batches: how many samples go through the model together; which are held back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pelacli.lowrank.padding import padding_mask
from pelacli.system import processes

BATCH_SIZE = 32  # calibration samples that walk through the model together
# Tokens of texts that do: what backward passes keep of every layer is there for all of them.
TOKENS = 512
_FEWEST = 2  # samples to hold back
FITTED_PER_HELD_BACK = 8  # samples that layers are fitted to, for each that is held back


@dataclass(frozen=True)
class Samples:
    """Calibration samples in batches: those that layers are fitted to, and those that are held back
    to see what became of the model."""

    fitted: Sequence[Any]
    held_back: Sequence[Any]


@dataclass(frozen=True)
class Share:
    """The batches that one of several processes walks through the model.

    Attributes:
        counts: whether they add to the sums. A process for which there is no batch walks along with
            another one's, and adds nothing.
    """

    batches: Sequence[Any]
    counts: bool = True


def hold_back(batches: Sequence[Any]) -> Samples:
    """Hold back the last ninth of the samples, rounded down; none where that is a single one, which
    says nothing of how outputs vary.

    Args:
        batches: each a tensor [B, …] or a dict of such tensors. Of anything else whole batches are
            held back.
    """
    fitted, held_back = list(batches), list[Any]()
    wanted = sum(map(samples_in, batches)) // (FITTED_PER_HELD_BACK + 1)
    if wanted < _FEWEST:
        return Samples(fitted, held_back)
    while wanted:
        last = fitted.pop()
        count = samples_in(last)
        if count > wanted:
            if _form(last)[0] is None:
                fitted.append(last)
                break
            fitted.append(_rows(last, count, 0, count - wanted))
            last = _rows(last, count, count - wanted, count)
        held_back.insert(0, last)
        wanted -= min(count, wanted)
    return Samples(fitted, held_back)


def with_held_back(samples: int) -> int:
    """How many samples to draw for so many to be fitted to."""
    return samples + samples // FITTED_PER_HELD_BACK


def cut(batches: Iterable[Any]) -> list[Any]:
    """Batches of texts in the parts that `text_parts` makes of each."""
    return [part for batch in batches for part in text_parts(batch, batch)]


def text_parts(batch: Any, inputs: Any, tokens: int = TOKENS) -> list[Any]:
    """A batch of texts in parts of at most so many tokens, but at least one text. Of other inputs,
    images with texts too, the whole batch alone.

    Args:
        inputs: what of the batch goes into the model.
    """
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    if not isinstance(ids, Tensor) or ids.ndim != 2 or "pixel_values" in inputs:
        return [batch]
    return pieces(batch, len(ids), max(1, tokens // ids.shape[1]))


def pieces(batch: Any, samples: int, size: int) -> list[Any]:
    """A batch of so many samples in pieces of at most ``size``."""
    return [_rows(batch, samples, start, start + size) for start in range(0, samples, size)]


def join(batches: Iterable[Any]) -> list[Any]:
    """Calibration batches, the small ones concatenated to batches of up to 32 samples.

    The correction runs each batch in a thread of its own, in two streams: a thousand batches of one
    image would be two thousand threads. Join them before moments are collected, since moments
    number the batches and the correction must see the same ones.

    Args:
        batches: each a tensor [B, …] or a dict of such tensors. Those that agree in all but B, in
            type and in device are joined. A batch of anything else stays alone.

    Returns:
        The batches in the order of their first samples. A batch that no other joins is returned as
        it is, so full batches and a smaller last one come out unchanged.
    """
    groups: list[list[Any]] = []
    latest: dict[Any, tuple[list[Any], int]] = {}  # form → its last group, and the samples in it
    for batch in batches:
        form, samples = _form(batch)
        group, count = latest.get(form, ([], 0)) if form is not None else ([], 0)
        if not group or count + samples > BATCH_SIZE:
            group, count = [], 0
            groups.append(group)
        group.append(batch)
        latest[form] = group, count + samples
    return [_concatenated(group) for group in groups]


def share(batches: Sequence[Any]) -> Share:
    """This process's share of the batches, which all processes have in the same order: the whole
    where there is only one."""
    rank, size = processes.rank_and_size()
    if batches and rank >= len(batches):
        return Share(batches[-1:], counts=False)
    return Share(batches[rank::size])


def samples_in(batch: Any) -> int:
    """How many samples a batch holds: a tensor [B, …], or a dict with such tensors."""
    values = [batch] if isinstance(batch, Tensor) else batch.values()
    return next(len(value) for value in values if isinstance(value, Tensor) and value.ndim)


def tokens_in(batch: Any) -> int | None:
    """How many tokens of text a batch holds, without padding; None of a batch without text."""
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        return None
    mask = padding_mask(batch)
    return int(batch["input_ids"].numel() if mask is None else mask.sum())


def _rows(value: Any, samples: int, start: int, stop: int) -> Any:
    """Some samples of what belongs to a batch of so many; what is not one per sample as it is."""
    if isinstance(value, Mapping):
        return {name: _rows(item, samples, start, stop) for name, item in value.items()}
    many = value.ndim if isinstance(value, Tensor) else isinstance(value, list | tuple)
    return value[start:stop] if many and len(value) == samples else value


def _form(batch: Any) -> tuple[Any, int]:
    """(what two batches must share to be joined, number of samples); (None, 0) of a batch that
    can't be joined."""
    named = batch if isinstance(batch, Mapping) else {None: batch}
    values = list(named.values())
    if not values or not all(isinstance(value, Tensor) and value.ndim for value in values):
        return None, 0
    samples = len(values[0])
    if any(len(value) != samples for value in values):
        return None, 0
    form = frozenset((name, v.shape[1:], v.dtype, v.device) for name, v in named.items())
    return form, samples


def _concatenated(group: Sequence[Any]) -> Any:
    first = group[0]
    if len(group) == 1:
        return first
    if isinstance(first, Mapping):
        return {name: torch.cat([batch[name] for batch in group]) for name in first}
    return torch.cat(list(group))
