"""What the tasks on images with texts have in common: settings, samples, batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs, TextInput
    from pelacli.recipe.data import Data
    from pelacli.tasks.common.pictures import PreparePicture

from pelacli.data.dataset import Dataset
from pelacli.data.loader import Batch, Samples
from pelacli.data.tokens import Tokens
from pelacli.errors import RequestError
from pelacli.models import libraries
from pelacli.models.inputs import PairInput
from pelacli.models.opened import OpenModel
from pelacli.models.pairs.families import view_of
from pelacli.recipe.fields import Text
from pelacli.tasks.base import Base

# Texts → ``input_ids`` and ``attention_mask`` [B, T].
Tokenise = Callable[[Sequence[str]], dict[str, Tensor]]


class PairTask(Base):
    """A task on images with texts. Settings that name momentum are ALBEF's: other models have no
    momentum copies, and ignore them."""

    KIND: ClassVar[str] = ""  # what `models.pairs.PairModel.fit` calls it

    images: Text | None = Field(None, description="folder of the images; that of the JSON if unset")
    clean: bool = Field(False, description="lower case and no punctuation, as ALBEF and BLIP read")
    max_words: int | None = Field(None, ge=1, description="texts are cut there; ALBEF's is 30")
    max_tokens: int | None = Field(None, ge=2, description="less than the model's own limit")
    alpha: float = Field(0.4, ge=0, le=1, description="share of momentum's soft targets")
    momentum: float = Field(0.995, ge=0, le=1, description="decay of momentum's slow copies")
    queue: int = Field(65536, ge=1, description="pairs that momentum remembers")
    ramp: float = Field(1.0, ge=0, description="epochs over which alpha rises, with momentum")

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        return fit_pair_model(opened, self.KIND, seed, dataset)

    def training(self, module: nn.Module, dataset: Samples) -> AbstractContextManager[Any]:
        """Momentum copies and their queue, where the model has some. An epoch of the ramp is the
        pairs of the training split."""
        ramp = round(self.ramp * len(dataset))
        settings = {"alpha": self.alpha, "momentum": self.momentum, "queue": self.queue}
        return view_of(module).training(settings | {"ramp": ramp})

    def wording(self, text: str) -> str:
        """A text as the model reads it, cleaned and cut if the settings say so."""
        text = clean_text(text) if self.clean else " ".join(text.split())
        return " ".join(text.split()[: self.max_words])

    def tokeniser(self, text_input: TextInput) -> Tokenise:
        """How the texts of a batch become tokens.

        Raises:
            RequestError: the model came without a tokenizer.
        """
        if text_input.tokenizer is None:
            raise RequestError(f"{self.KIND}: the model came without the tokenizer that text needs")
        limit = min(text_input.max_length, self.max_tokens or text_input.max_length)
        return partial(_tokenise, text_input, limit)


def pair_input(inputs: Inputs, data: Data) -> PairInput:
    """What the model takes, if that is images with texts.

    Raises:
        RequestError: it takes only one of them.
    """
    if not isinstance(inputs, PairInput):
        what = "texts" if hasattr(inputs, "tokenizer") else "images"
        raise RequestError(f"{data.dataset}: the model takes {what} alone, the task is about both")
    return inputs


def fit_pair_model(
    opened: OpenModel,
    kind: str,
    seed: int,
    dataset: Dataset,
    classes: Sequence[str] | None = None,
) -> OpenModel:
    """The model as a task needs it for the pictures of a dataset, described anew if it changed.

    Args:
        kind: of the task, for `PairModel.fit`.
        dataset: its samples are made by a `PreparePair`.
        classes: their names, where the task has classes.
    """
    torch.manual_seed(seed)
    size = cast(PreparePair, dataset.make).picture.size
    inputs = cast(PairInput, opened.inputs)
    other_size = None if size == inputs.image.size[1:] else int(size[0])
    before = opened.config
    opened.module = view_of(opened.module).fit(kind, classes=classes, image_size=other_size)
    adapter = libraries.library(opened.library)
    opened.config = adapter.config(opened.module)
    if opened.config != before:
        opened.head = adapter.head(opened.module)
        image = replace(inputs.image, size=(inputs.image.size[0], *size))
        opened.inputs = replace(inputs, image=image)
    return opened


# Samples ----------------------------------------------------------------------------------------


@dataclass
class Entries:
    """Raw samples by index. Each has an attribute ``where``, which names it in errors."""

    items: Sequence[Any]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def name(self, index: int) -> str:
        where: str = self.items[index].where
        return where


@dataclass
class PreparePair:
    """What makes a sample of a picture with texts; each task has its own ``__call__``.

    Attributes:
        wording: a text → as the model reads it.
    """

    picture: PreparePicture
    wording: Callable[[str], str]


def clean_text(text: str) -> str:
    """Lower case, dashes and slashes become spaces, other punctuation goes: how ALBEF and BLIP were
    given their texts."""
    text = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower())
    return " ".join(re.sub(r"[-/]", " ", text).replace("<person>", "person").split())


# Batches ----------------------------------------------------------------------------------------


def pair_inputs(items: Sequence[Batch], texts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of a batch of pairs; the images come first.

    Args:
        items: samples with an ``image``.
    """
    return {"pixel_values": stack(items, "image")} | texts


def stack(items: Iterable[Mapping[str, Any]], key: str) -> Tensor:
    """[B, …] of a field of the samples: tensors or numbers."""
    values = [item[key] for item in items]
    return torch.stack(values) if isinstance(values[0], Tensor) else torch.tensor(values)


def _tokenise(text_input: TextInput, limit: int, texts: Sequence[str]) -> dict[str, Tensor]:
    read = Tokens(text_input.tokenizer, limit, text_input.fill, text_input.vocabulary)
    tokens = read(list(texts))
    # BERT's tokenizer adds types of tokens, which the models choose for themselves.
    return {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
