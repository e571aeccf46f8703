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
    from pelacli.recipe.schema import Data

from pelacli.data.dataset import Dataset
from pelacli.data.loader import Batch, Samples
from pelacli.data.tokens import tokenise
from pelacli.errors import RequestError
from pelacli.models import libraries
from pelacli.models.inputs import PairInput
from pelacli.models.opened import OpenModel
from pelacli.models.pairs.families import view_of
from pelacli.recipe.fields import Text
from pelacli.tasks.base import Base


class PairTask(Base):
    """A task on images with texts. Fields with momentum in their description are ALBEF's; other
    models have no momentum copies, and these settings then mean nothing."""

    KIND: ClassVar[str] = ""  # what `models.pairs.PairModel.fit` calls it

    images: Text | None = Field(None, description="folder of the images; that of the JSON if unset")
    clean: bool = Field(False, description="lower case and no punctuation, as ALBEF and BLIP read")
    max_words: int | None = Field(None, ge=1, description="texts are cut there; ALBEF's is 30")
    max_tokens: int | None = Field(None, ge=2, description="less than the model's own limit")
    alpha: float = Field(0.4, ge=0, le=1, description="share of momentum's soft targets")
    momentum: float = Field(0.995, ge=0, le=1, description="decay of momentum's slow copies")
    queue: int = Field(65536, ge=1, description="pairs that momentum remembers")
    ramp: float = Field(1.0, ge=0, description="epochs over which alpha rises, with momentum")

    def training(self, module: nn.Module, dataset: Samples) -> AbstractContextManager[Any]:
        """Momentum copies and their queue, where the model has some. An epoch of the ramp is the
        pairs of the training split."""
        ramp = round(self.ramp * len(dataset))
        settings = {"alpha": self.alpha, "momentum": self.momentum, "queue": self.queue}
        return view_of(module).training(settings | {"ramp": ramp})

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        return fitted(opened, self.KIND, seed, dataset)

    def wording(self, text: str) -> str:
        """A text as the model reads it, cleaned and cut if the settings say so."""
        text = cleaned(text) if self.clean else " ".join(text.split())
        return " ".join(text.split()[: self.max_words])

    def tokens(self, words: TextInput) -> Callable[[Sequence[str]], dict[str, Tensor]]:
        """Texts → ``input_ids`` and ``attention_mask`` [B, T].

        Raises:
            RequestError: the model came without a tokenizer.
        """
        if words.tokenizer is None:
            raise RequestError(f"{self.KIND}: the model came without the tokenizer that text needs")
        limit = min(words.max_length, self.max_tokens or words.max_length)
        return partial(_tokens, words, limit)


def fitted(
    opened: OpenModel,
    kind: str,
    seed: int,
    dataset: Dataset,
    classes: Sequence[str] | None = None,
) -> OpenModel:
    """The model as a task wants it for a dataset, described anew where it changed."""
    torch.manual_seed(seed)
    size = cast(Any, dataset.make).look.size
    inputs = cast(PairInput, opened.inputs)
    other = None if size == inputs.image.size[1:] else int(size[0])
    before = opened.config
    opened.module = view_of(opened.module).fit(kind, classes=classes, image_size=other)
    adapter = libraries.library(opened.library)
    opened.config = adapter.config(opened.module)
    if opened.config != before:
        opened.head = adapter.head(opened.module)
        image = replace(inputs.image, size=(inputs.image.size[0], *size))
        opened.inputs = replace(inputs, image=image)
    return opened


def both(inputs: Inputs, data: Data) -> PairInput:
    """What the model wants, if it wants images with texts.

    Raises:
        RequestError: it wants only one of them.
    """
    if not isinstance(inputs, PairInput):
        what = "texts" if hasattr(inputs, "tokenizer") else "images"
        raise RequestError(f"{data.dataset}: the model takes {what} alone, the task is about both")
    return inputs


# Texts ------------------------------------------------------------------------------------------


def cleaned(text: str) -> str:
    """Lower case, dashes and slashes to spaces, other punctuation away: how ALBEF and BLIP were
    given their texts."""
    text = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower())
    return " ".join(re.sub(r"[-/]", " ", text).replace("<person>", "person").split())


def _tokens(words: TextInput, limit: int, texts: Sequence[str]) -> dict[str, Tensor]:
    found = tokenise(words.tokenizer, list(texts), limit, fill=words.fill)
    # Types of tokens, which BERT's tokenizer adds, are the models' own affair.
    return {name: found[name] for name in ("input_ids", "attention_mask") if name in found}


def answers(words: TextInput, texts: Sequence[str], limit: int = 32) -> tuple[Tensor, Tensor]:
    """Answers as a decoder writes them: (token numbers [N, A] from its start to its end token, and
    their mask)."""
    assert words.marks is not None
    start, end = words.marks
    found = words.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    rows = [[start, *ids[: limit - 2], end] for ids in found]
    longest = max(len(row) for row in rows)
    pad = words.tokenizer.pad_token_id or 0
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


# Samples ----------------------------------------------------------------------------------------


@dataclass
class Entries:
    """Raw samples that know their places in their files."""

    items: Sequence[Any]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def name(self, index: int) -> str:
        where: str = self.items[index].where
        return where


def stacked(items: Iterable[Mapping[str, Any]], key: str) -> Tensor:
    """[B, …] of a field: tensors or numbers."""
    values = [item[key] for item in items]
    return torch.stack(values) if isinstance(values[0], Tensor) else torch.tensor(values)


def together(items: Sequence[Batch], texts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of a batch of pairs; the images come first."""
    return {"pixel_values": stacked(items, "image")} | texts
