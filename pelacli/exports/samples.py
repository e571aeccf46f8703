"""What an exported model is checked on: two batches of different sizes, and of texts of different
lengths too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pelacli.data import loader
from pelacli.data.tokens import Tokens
from pelacli.errors import RequestError
from pelacli.exports.calls import AnyCall, Call
from pelacli.models import examples
from pelacli.models.inputs import ImageInput, TextInput
from pelacli.models.opened import OpenModel
from pelacli.recipe.data import Data
from pelacli.tasks import unlabelled

_SIZES = (3, 1)  # samples of the batches; a model traced with one sample may hold for one alone
_TEXTS = [
    "The ferry leaves the harbour at seven in the morning, unless there is fog on the river.",
    "She asked him whether the two of them had met before.",
    "Prices rose by 3.5% last year; wages did not.",
    "It rained.",
]
_LENGTHS = (11, 6)  # tokens of random texts


def batches(
    opened: OpenModel, call: Call, data: str | None, given: Sequence[Any] | None
) -> list[dict[str, Tensor]]:
    """Batches to compare two models on.

    Args:
        data: a dataset, of which the first samples are taken.
        given: batches of the caller's own, as `pelacli.models.prediction.predict` takes them.

    Raises:
        RequestError: the data can't be read, or is nothing for this model.
    """
    if given is not None:
        own = [_by_name(batch) for batch in given]
    elif data is not None:
        own = _of_data(opened, data)
    else:
        return plain(opened, call)
    if len(own) == 1:
        own.append({name: torch.cat([value, value]) for name, value in own[0].items()})
    if len({batch["input_ids"].shape[1] for batch in own if "input_ids" in batch}) == 1:
        own[-1] = {name: value[:, : -(-value.shape[1] // 2)] for name, value in own[-1].items()}
    return own


def plain(opened: OpenModel, call: Call) -> list[dict[str, Tensor]]:
    """Batches of no user's data: sentences of pela's own where there is a tokenizer, else random
    tokens; images of noise."""
    inputs = opened.inputs
    generator = torch.Generator().manual_seed(0)
    if isinstance(call, AnyCall):
        example = examples.example(opened)
        if not isinstance(example, dict):
            raise RequestError(f"{opened.ref}: pela knows no inputs to check it on")
        return [_varied(example, generator)]
    if isinstance(inputs, TextInput) and inputs.tokenizer is not None:
        tokens = Tokens.of(inputs, opened.ref)
        return [dict(tokens(texts)) for texts in (_TEXTS[: _SIZES[0]], _TEXTS[_SIZES[0] :])]
    if isinstance(inputs, TextInput):
        known = min(inputs.vocabulary or 2, 2**15)
        sizes = [
            (size, min(length, inputs.max_length))
            for size, length in zip(_SIZES, _LENGTHS, strict=True)
        ]
        ids = [torch.randint(1, known, size, generator=generator) for size in sizes]
        return [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in ids]
    assert isinstance(inputs, ImageInput)  # calls of other inputs are of any kind
    return [
        {"pixel_values": torch.randn(size, *inputs.size, generator=generator)} for size in _SIZES
    ]


def _of_data(opened: OpenModel, data: str) -> list[dict[str, Tensor]]:
    section = Data(dataset=data)
    dataset = unlabelled.Task().open(section, section.val, inputs=opened.inputs)
    loaded = loader.loader(dataset, batch_size=_SIZES[0], limit=sum(_SIZES), pinned=False)
    return [_by_name(batch["inputs"]) for batch in loaded]


def _by_name(inputs: Any) -> dict[str, Tensor]:
    return {"pixel_values": inputs} if isinstance(inputs, Tensor) else dict(inputs)


def _varied(example: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """An example whose numbers are all zero, with noise in their place."""
    return {
        name: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in example.items()
    }
