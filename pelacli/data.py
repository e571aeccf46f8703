"""Datasets: from the words of a recipe to samples a model can eat. Their order and batching is
`pelacli.loader`'s matter.

A sample is ``{"inputs": …, "labels": …}`` (no labels where there are none). Here: a tensor
[C, H, W] for images, the sentence itself for text, which is tokenised and padded batch by batch,
and the number of a class. Tasks with other samples make a `Dataset` of their own, from a reader in
`pelacli.formats`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from pelacli.errors import RequestError
from pelacli.loader import Batch, Loader, loader
from pelacli.sources import open_source

if TYPE_CHECKING:
    from pelacli.models.types import ImageInput, Inputs, TextInput
    from pelacli.recipe import Augment

__all__ = ["Batch", "Dataset", "Loader", "loader", "open_dataset"]


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
            .txt file (a sentence a line), .jsonl or .csv (field ``text``, and ``label`` if there is
            one), or a folder of such files named after splits; "hfds/NAME" (Hugging Face),
            "torch/NAME" (torchvision's small ones), "wds/DIRECTORY" (WebDataset shards).
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
    text = hasattr(inputs, "tokenizer")
    if text and cast("TextInput", inputs).tokenizer is None:
        raise RequestError(f"{spec}: the model came without the tokenizer that text needs")
    source, found, classes = open_source(
        spec, split, text=text, training=training, unlabelled=unlabelled
    )
    if not isinstance(source, IterableDataset) and len(source) == 0:
        raise RequestError(f"{spec}: the split {found or split} is empty")
    streamed = isinstance(source, IterableDataset)
    labelled = not unlabelled and (streamed or source[0][1] is not None)
    prepare: Callable[[Any, str], Any]
    collate: Callable[[list[Batch]], Batch]
    if text:
        words = cast("TextInput", inputs)
        prepare, collate = _sentence, partial(_collate_text, words.tokenizer, words.max_length)
    else:
        pictures = cast("ImageInput", inputs)
        prepare, collate = _image_transform(pictures, training, augment, image_size), _collate
    make = _Make(prepare, labelled)
    return Dataset(spec, source, make, collate, found, classes, labelled)


@dataclass
class _Make:
    """A sample from a raw (image or sentence, label or None)."""

    prepare: Callable[[Any, str], Any]
    labelled: bool

    def __call__(self, sample: tuple[Any, Any], where: str) -> Batch:
        raw, label = sample
        item = {"inputs": self.prepare(raw, where)}
        if self.labelled and label is not None:
            item["labels"] = label
        return item


@dataclass
class _PrepareImage:
    mode: str
    transform: Callable[[Any], Tensor]

    def __call__(self, raw: Any, where: str) -> Tensor:
        return self.transform(_decode(raw, self.mode, where))


def _decode(raw: Any, mode: str, where: str) -> Any:
    """A PIL image of the mode from a path, bytes, an array or an image."""
    from PIL import Image

    try:
        if isinstance(raw, np.ndarray):
            raw = Image.fromarray(raw)
        elif not isinstance(raw, Image.Image):
            raw = Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw)
        return raw.convert(mode)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError …
        raise RequestError(f"{where}: not a readable image ({error}): mend or remove it") from None


def _image_transform(
    inputs: ImageInput, training: bool, augment: Augment | None, image_size: int | None
) -> _PrepareImage:
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
    return _PrepareImage("L" if channels == 1 else "RGB", transform)


def _collate(items: list[Batch]) -> Batch:
    batch: Batch = {"inputs": torch.stack([item["inputs"] for item in items])}
    if "labels" in items[0]:
        batch["labels"] = torch.tensor([item["labels"] for item in items])
    return batch


def _sentence(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise RequestError(f"{where}: not a sentence but {type(text).__name__}")
    return text


def _collate_text(tokenizer: Any, max_length: int, items: list[Batch]) -> Batch:
    """Tokenise and pad to the longest sentence of the batch."""
    if tokenizer.pad_token is None:  # GPT-2 and its kin; padding is masked, so any token will do
        tokenizer.pad_token = tokenizer.eos_token
    tokens = tokenizer(
        [item["inputs"] for item in items],
        padding=True,
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    )
    batch: Batch = {"inputs": dict(tokens)}
    if "labels" in items[0]:
        batch["labels"] = torch.tensor([item["labels"] for item in items])
    return batch
