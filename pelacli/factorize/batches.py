"""Calibration batches: how many samples walk through the model together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pelacli.lowrank.padding import padding_mask

BATCH_SIZE = 32  # calibration samples that walk through the model together


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
