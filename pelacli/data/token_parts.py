"""Batches of texts for language models, a few texts at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from pelacli.data.loader import Batch
from pelacli.factorize.batches import text_parts
from pelacli.models.token_head import has_vocabulary


def token_parts(module: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, those of a language model in parts of at most 1,024 tokens, or of one text.
    Batches of images with texts stay whole: what else is in them does not always go by samples.

    A batch of 64 blocks of 512 tokens has 6 GB of logits over a vocabulary of 50,000.
    """
    cuts = has_vocabulary(module)
    for batch in batches:
        yield from text_parts(batch, batch.get("inputs")) if cuts else [batch]
