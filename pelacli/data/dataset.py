"""Datasets: from the words of a recipe to samples a model can eat. Their order and batching is
`pelacli.data.loader`'s matter.

A sample is ``{"inputs": …, "labels": …}`` (no labels where there are none). Here: a tensor
[C, H, W] for images, the sentence itself (or a pair of them) for text, which is tokenised and
padded batch by batch, and the number of a class. Tasks with other samples make a `Dataset` of
their own, from a reader in `pelacli.data.formats`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs
    from pelacli.recipe.data import Augment

from pelacli.data.formats.chat import Chat
from pelacli.data.formats.text import open_texts
from pelacli.data.formats.text_columns import Columns
from pelacli.data.images import image_transform
from pelacli.data.loader import Batch
from pelacli.data.sources import open_source
from pelacli.data.tokens import Tokens
from pelacli.errors import RequestError
from pelacli.models.inputs import TextInput


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
        own_classes: the classes of the data, where ``classes`` are those of the model, which may
            have more.
    """

    spec: str
    source: Any
    make: Callable[[Any, str], Batch]
    collate: Callable[[list[Batch]], Batch]
    split: str | None = None
    classes: list[str] | None = None
    labelled: bool = True
    own_classes: list[str] | None = None

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
            .txt file (a sentence a line), .jsonl, .csv or .tsv (`pelacli.data.formats.text`), also
            with .gz, or a folder of such files named after splits; "hfds/NAME" (Hugging Face, see
            `pelacli.data.hub.open_split`), "torch/NAME" (torchvision's small ones),
            "wds/DIRECTORY" (WebDataset shards).
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
    source, split_name, classes = open_source(spec, split, training=training, unlabelled=unlabelled)
    if not isinstance(source, IterableDataset) and len(source) == 0:
        raise RequestError(f"{spec}: the split {split_name or split} is empty")
    streamed = isinstance(source, IterableDataset)
    labelled = not unlabelled and (streamed or source[0][1] is not None)
    prepare = image_transform(inputs, training, augment, image_size)
    return Dataset(spec, source, Make(prepare, labelled), _collate, split_name, classes, labelled)


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
        columns, scores: see `pelacli.data.formats.text.open_texts`.

    Raises:
        RequestError: one line that says what is missing or unreadable.
    """
    collate = partial(_collate_text, Tokens.of(inputs, spec))
    texts = open_texts(
        spec,
        split,
        columns,
        unlabelled=unlabelled,
        scores=scores,
        order=inputs.classes,
        chat=Chat(inputs.tokenizer),
    )
    labelled = texts.labels is not None
    return Dataset(spec, texts, Make(_as_it_is, labelled), collate, texts.split, texts.classes,
                   labelled, texts.own_classes)  # fmt: skip


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


def _collate(items: list[Batch]) -> Batch:
    return {"inputs": torch.stack([item["inputs"] for item in items]), **labels_of(items)}


def _as_it_is(raw: Any, where: str) -> Any:
    return raw


def _collate_text(tokens: Tokens, items: list[Batch]) -> Batch:
    """Tokenise and pad to the longest text of the batch."""
    texts = [item["inputs"] for item in items]
    if isinstance(texts[0], str):
        inputs = tokens(texts)
    else:
        inputs = tokens([a for a, _ in texts], [b for _, b in texts])
    return {"inputs": inputs, **labels_of(items)}


def labels_of(items: list[Batch]) -> Batch:
    """``labels`` [B] of a batch; nothing where its samples have none."""
    if "labels" not in items[0]:
        return {}
    return {"labels": torch.tensor([item["labels"] for item in items])}
