"""The output head: how many classes it has, another number of them, another kind of head."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from pelacli.errors import RequestError
from pelacli.models.carried import without_sentence_modules
from pelacli.models.inputs import ImageInput, TextInput
from pelacli.models.libraries import library
from pelacli.models.opened import OpenModel


def num_classes(opened: OpenModel) -> int | None:
    """Outputs of the model's classifier; None for a model without one."""
    return library(opened.library).num_classes(opened.module)


def set_classes(opened: OpenModel, classes: int, seed: int) -> None:
    """Give the model a fresh head of so many classes, in place.

    Raises:
        RequestError: the model has no head that can be exchanged.
    """
    torch.manual_seed(seed)
    adapter = library(opened.library)
    adapter.set_classes(opened.module, classes)
    opened.config, opened.head = adapter.config(opened.module), adapter.head(opened.module)
    if isinstance(opened.inputs, ImageInput):  # the names were the old head's
        opened.inputs = replace(opened.inputs, labels=())
    elif isinstance(opened.inputs, TextInput):
        opened.inputs = replace(opened.inputs, classes=None)


def refreshed(opened: OpenModel) -> OpenModel:
    """The model with the config, inputs and head of its module as that is now: whoever has the
    module in hand may have given it another head, or changed its configuration.

    Raises:
        RequestError: the module's library can't describe it any more.
    """
    adapter, module = library(opened.library), opened.module
    now = replace(opened, config=adapter.config(module), head=adapter.head(module))
    with tempfile.TemporaryDirectory() as folder:
        now.describe(Path(folder))
        return replace(now, inputs=adapter.inputs(module, Path(folder)))


def with_head(
    opened: OpenModel,
    kind: str,
    seed: int,
    classes: Sequence[str] = (),
    pad_token_id: int | None = None,
) -> OpenModel:
    """The model as another of its family's classes, around the layers that it has: those that both
    classes have in the same shape are the very modules, low-rank ones too; the others are fresh.

    Args:
        kind: in transformers' words: "SequenceClassification", "MaskedLM", "CausalLM", or "" for
            the encoder alone.
        seed: of fresh weights.
        classes: names of the outputs, one each.
        pad_token_id: what padding looks like, where the model has no word of its own for it.

    Raises:
        RequestError: the model's library or family has no such class.
    """
    adapter = library(opened.library)
    build = getattr(adapter, "with_head", None)
    if build is None:
        raise RequestError(f"{opened.ref}: {opened.library} has no text models to put a head on")
    torch.manual_seed(seed)
    module = build(opened.module, kind, classes, pad_token_id)
    module.eval()
    inputs, before = adapter.inputs(module, None), opened.inputs
    if isinstance(inputs, TextInput) and isinstance(before, TextInput):
        inputs = replace(inputs, tokenizer=before.tokenizer, max_length=before.max_length)
    files = opened.carried if not kind else without_sentence_modules(opened.carried)
    if not module.can_generate():
        files = {name: text for name, text in files.items() if name != "generation_config.json"}
    return replace(
        opened,
        module=module,
        config=adapter.config(module),
        carried=files,
        head=adapter.head(module),
        inputs=inputs,
    )


def is_idle(module: nn.Module) -> bool:
    """Whether a module gives back its input in eval mode, by its class."""
    dropout = nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d
    return isinstance(module, nn.Identity | dropout) or type(module).__name__.endswith("DropPath")
