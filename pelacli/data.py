"""Datasets: from the words of a recipe to samples a model can eat. Their order and batching is
`pelacli.loader`'s matter.

A sample is ``{"inputs": …, "labels": …}`` (no labels where there are none). Here: a tensor
[C, H, W] for images, the sentence itself (or a pair of them) for text, which is tokenised and
padded batch by batch, and the number of a class. Tasks with other samples make a `Dataset` of
their own, from a reader in `pelacli.formats`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from pelacli.errors import RequestError
from pelacli.formats.text import Columns, open_texts
from pelacli.loader import Batch, Loader, loader
from pelacli.models.types import TextInput
from pelacli.sources import open_source

if TYPE_CHECKING:
    from pelacli.models.types import ImageInput, Inputs
    from pelacli.recipe import Augment

__all__ = ["Batch", "Dataset", "Loader", "decode", "loader", "open_dataset", "open_text"]


@dataclass
class Dataset:
    """One split of a dataset.

    Attributes:
        spec: what the user called it.
        source: gives raw samples by index, or in turn (a stream).
        make: (raw sample, its name in errors) → a sample; random augmentation happens here.
        collate: makes a batch of samples.
        split: the split's own name; None where the dataset has no splits, so that training and
            validation would see the same samples.
        classes: their names, where a label is the number of a class and they are known.
        labelled: whether its samples have labels.
    """

    spec: str
    source: Any
    make: Callable[[Any, str], Batch]
    collate: Callable[[list[Batch]], Batch]
    split: str | None = None
    classes: list[str] | None = None
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Batch:
        name = getattr(self.source, "name", None)
        where = name(index) if name else f"{self.spec}, sample {index}"
        return self.item(self.source[index], where)

    def item(self, sample: Any, where: str) -> Batch:
        """A sample from a raw one; ``where`` names it in errors."""
        return self.make(sample, where)

    @property
    def num_classes(self) -> int | None:
        return len(self.classes) if self.classes else None


def open_dataset(
    spec: str,
    split: str,
    *,
    inputs: Inputs,
    training: bool = False,
    augment: Augment | None = None,
    image_size: int | None = None,
    unlabelled: bool = False,
) -> Dataset:
    """Open one split of a dataset for a model.

    Args:
        spec: "digits" (scikit-learn's, 80 % train and 20 % validation); a folder of class folders,
            or of ``train/``, ``validation/`` (or ``val/``), ``test/`` that hold class folders; a
            .txt file (a sentence a line), .jsonl, .csv or .tsv (`pelacli.formats.text`), or a
            folder of such files named after splits; "hfds/NAME" (Hugging Face), "torch/NAME"
            (torchvision's small ones), "wds/DIRECTORY" (WebDataset shards).
        split: "train", "validation", "test" or what the dataset has. A folder without folders of
            that kind has no splits: any name gives all of it.
        inputs: what the model wants.
        training: with ``augment``, random transforms; else those of evaluation.
        image_size: pixels a side, in place of the model's own.
        unlabelled: labels are left out, and a folder may hold its images at any depth.

    Raises:
        RequestError: one line that says what is missing or unreadable.
    """
    if hasattr(inputs, "image"):
        raise RequestError(
            f"{spec}: the model wants images and texts together; name a task that gives both"
        )
    if isinstance(inputs, TextInput):
        return open_text(spec, split, inputs=inputs, unlabelled=unlabelled)
    source, found, classes = open_source(spec, split, training=training, unlabelled=unlabelled)
    if not isinstance(source, IterableDataset) and len(source) == 0:
        raise RequestError(f"{spec}: the split {found or split} is empty")
    streamed = isinstance(source, IterableDataset)
    labelled = not unlabelled and (streamed or source[0][1] is not None)
    prepare = image_transform(inputs, training, augment, image_size)
    return Dataset(spec, source, Make(prepare, labelled), _collate, found, classes, labelled)


def open_text(
    spec: str,
    split: str,
    *,
    inputs: TextInput,
    columns: Columns | None = None,
    unlabelled: bool = False,
    scores: bool = False,
) -> Dataset:
    """Open one split of texts, or pairs of them, for a model that reads a pair as one.

    Args:
        columns, scores: see `pelacli.formats.text.open_texts`.

    Raises:
        RequestError: one line that says what is missing or unreadable.
    """
    collate = partial(_collate_text, Tokens.of(inputs, spec))
    texts = open_texts(
        spec, split, columns, unlabelled=unlabelled, scores=scores, order=inputs.classes
    )
    labelled = texts.labels is not None
    return Dataset(spec, texts, Make(_as_it_is, labelled), collate, texts.split, texts.classes,
                   labelled)  # fmt: skip


@dataclass(frozen=True)
class Tokens:
    """Texts → what a model reads."""

    tokenizer: Any
    max_length: int
    fill: bool = False  # to max_length, not to the longest of a batch

    @classmethod
    def of(cls, inputs: Inputs, spec: str) -> Tokens:
        """Those of a model.

        Args:
            spec: the data, in errors.

        Raises:
            RequestError: the model reads no text, or came without its tokenizer.
        """
        if not isinstance(inputs, TextInput):
            raise RequestError(f"{spec}: the task is about texts, and the model reads none")
        if inputs.tokenizer is None:
            raise RequestError(f"{spec}: the model came without the tokenizer that text needs")
        return cls(inputs.tokenizer, inputs.max_length, inputs.fill)

    @property
    def padding(self) -> int:
        """The token that fills batches up."""
        self._choose_padding()
        return int(self.tokenizer.pad_token_id)

    def _choose_padding(self) -> None:
        if self.tokenizer.pad_token is None:  # GPT-2 and its kin; padding is masked: any will do
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.pad_token is None:
            raise RequestError(
                "the model's tokenizer has neither a padding nor an end-of-text token; name one in "
                "its tokenizer_config.json"
            )

    def __call__(self, texts: list[str], seconds: list[str] | None = None) -> dict[str, Tensor]:
        """The texts (or pairs of a text and its second one), padded to the longest: [B, N] each."""
        self._choose_padding()
        both = [texts] if seconds is None else [texts, seconds]
        return dict(
            self.tokenizer(
                *both,
                padding="max_length" if self.fill else True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )
        )


@dataclass
class Make:
    """A sample from a raw (image or sentence, label or None)."""

    prepare: Callable[[Any, str], Any]
    labelled: bool

    def __call__(self, sample: tuple[Any, Any], where: str) -> Batch:
        raw, label = sample
        item = {"inputs": self.prepare(raw, where)}
        if self.labelled:
            if label is None:
                raise RequestError(f"{where}: has no label, which others have; leave it out")
            if not isinstance(label, Real):
                raise RequestError(
                    f"{where}: label {label!r:.40} is no class number; number the classes from 0 "
                    "(in a hub dataset, class_encode_column does)"
                )
            item["labels"] = label
        return item


@dataclass
class PrepareImage:
    """(a raw image, its name in errors) → a tensor [C, H, W]."""

    mode: str
    transform: Callable[[Any], Tensor]

    def __call__(self, raw: Any, where: str) -> Tensor:
        return self.transform(decode(raw, self.mode, where))


def decode(raw: Any, mode: str, where: str) -> Any:
    """A PIL image of the mode from a path, bytes, an array or an image; ``where`` names it."""
    from PIL import Image

    try:
        if isinstance(raw, np.ndarray):
            raw = Image.fromarray(raw)
        elif not isinstance(raw, Image.Image):
            raw = Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw)
        return raw.convert(mode)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError …
        raise RequestError(f"{where}: not a readable image ({error}): mend or remove it") from None


def image_transform(
    inputs: ImageInput, training: bool, augment: Augment | None, image_size: int | None
) -> PrepareImage:
    """The transform of an image model; arguments as in `open_dataset`."""
    from timm.data import create_transform

    channels, height, width = inputs.size
    if channels not in (1, 3):
        raise RequestError(f"the model takes images of {channels} channels; only 1 and 3 are read")
    size = (channels, image_size, image_size) if image_size else (channels, height, width)
    mean, std = inputs.mean, inputs.std
    if channels == 1:  # a grey model may carry the colour model's statistics
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    options: dict[str, Any] = {"interpolation": inputs.interpolation, "crop_pct": inputs.crop_pct}
    if augment is not None:
        if augment.crop_pct is not None:
            options["crop_pct"] = augment.crop_pct
        if training and not augment.none:
            names = ("scale", "ratio", "hflip", "vflip", "color_jitter", "auto_augment")
            options |= {name: getattr(augment, name) for name in names}
            options |= {"is_training": True, "re_prob": augment.reprob, "re_mode": "pixel"}
            options["interpolation"] = augment.interpolation or inputs.interpolation
    try:
        transform = create_transform(input_size=size, mean=mean, std=std, **options)
    except (AssertionError, KeyError, ValueError, TypeError) as error:
        raise RequestError(f"data.augment: timm refuses it ({error!r})") from None
    return PrepareImage("L" if channels == 1 else "RGB", transform)


def _collate(items: list[Batch]) -> Batch:
    batch: Batch = {"inputs": torch.stack([item["inputs"] for item in items])}
    if "labels" in items[0]:
        batch["labels"] = torch.tensor([item["labels"] for item in items])
    return batch


def _as_it_is(raw: Any, where: str) -> Any:
    return raw


def _collate_text(tokens: Tokens, items: list[Batch]) -> Batch:
    """Tokenise and pad to the longest text of the batch."""
    texts = [item["inputs"] for item in items]
    if isinstance(texts[0], str):
        batch: Batch = {"inputs": tokens(texts)}
    else:
        batch = {"inputs": tokens([a for a, _ in texts], [b for _, b in texts])}
    if "labels" in items[0]:
        batch["labels"] = torch.tensor([item["labels"] for item in items])
    return batch


def tokenise(
    tokenizer: Any, sentences: list[str], max_length: int, *, fill: bool = False
) -> dict[str, Tensor]:
    """What the model takes for sentences: tensors [B, T], padded to the longest of them, or, with
    ``fill``, to ``max_length``."""
    return Tokens(tokenizer, max_length, fill)(sentences)
