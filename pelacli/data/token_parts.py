"""Batches of texts for language models, a few texts at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from pelacli.data.loader import Batch
from pelacli.factorize.batches import TOKENS
from pelacli.models.token_head import has_vocabulary


def token_parts(module: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, those of a language model in parts of at most 1,024 tokens, or of one text.
    Batches of images with texts stay whole: what else is in them does not always go by samples.

    A batch of 64 blocks of 512 tokens has 6 GB of logits over a vocabulary of 50,000.
    """
    for batch in batches:
        ids = _texts(batch.get("inputs"))
        if ids is None or not has_vocabulary(module):
            yield batch
            continue
        count = len(ids)
        step = max(1, TOKENS // ids.shape[1])
        for start in range(0, count, step):
            yield _rows(batch, count, start, start + step)


def _texts(inputs: Any) -> Tensor | None:
    """The tokens [B, N] of a batch of texts; None of other inputs."""
    if not isinstance(inputs, Mapping) or "pixel_values" in inputs:
        return None
    ids = inputs.get("input_ids")
    return ids if isinstance(ids, Tensor) and ids.ndim == 2 else None


def _rows(value: Any, count: int, start: int, stop: int) -> Any:
    """Some samples of what belongs to a batch of so many."""
    if isinstance(value, Mapping):
        return {name: _rows(item, count, start, stop) for name, item in value.items()}
    many = value.ndim if isinstance(value, Tensor) else isinstance(value, list | tuple)
    return value[start:stop] if many and len(value) == count else value
