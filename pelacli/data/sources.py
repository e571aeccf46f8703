"""Where images come from: raw (image, label or None) by index. Texts: `pelacli.data.formats.text`.

Formats are those the community has; what a folder or file may look like is told in
`pelacli.data.dataset.open_dataset`. Every error is one line that names the file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pelacli.data import class_folders, image_files
from pelacli.data.hub import image_of, one_line_errors, open_split, row_name
from pelacli.data.splits import SPLITS, choose_split
from pelacli.errors import RequestError
from pelacli.system import extras

# A source, the name of the split (None where there are no splits), the class names where known.
Opened = tuple[Any, str | None, list[str] | None]


def open_source(spec: str, split: str, *, training: bool, unlabelled: bool) -> Opened:
    """Find the samples of a split; arguments as in `pelacli.data.dataset.open_dataset`."""
    prefix, _, rest = spec.partition("/")
    if prefix in ("hfds", "torch", "wds") and rest:
        return _remote(prefix, rest, spec, split, training)
    if spec == "digits":
        split_name = choose_split(split, ("train", "validation"), spec)
        return _digits(split_name), split_name, [str(digit) for digit in range(10)]
    if unlabelled:
        files, name = class_folders.read_unlabelled(spec, split)
        return _Images(files, [None] * len(files)), name, None
    files, labels, name, classes = class_folders.read_labelled(spec, split)
    return _Images(files, labels), name, classes


@dataclass
class _Images:
    """Image files or PIL images, with labels."""

    images: Sequence[Any]
    labels: Sequence[int | None]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int | None]:
        label = self.labels[index]
        return self.images[index], None if label is None else int(label)

    def name(self, index: int) -> str:
        image = self.images[index]
        return image if isinstance(image, str) else f"sample {index}"


def _digits(split: str) -> _Images:
    """scikit-learn's 1,797 8×8 digits; a fifth of each digit is for validation."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    parts = train_test_split(
        np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0
    )
    chosen = np.sort(parts[split != "train"])
    images = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return _Images(list(images), digits.target[chosen].tolist())


# Datasets that libraries fetch -------------------------------------------------------------------


@dataclass
class _Hub:
    """A split of a Hugging Face dataset: its image column, and its label."""

    rows: Any
    column: str
    label: str | None
    spec: str

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return row_name(self.spec, index)

    def __getitem__(self, index: int) -> tuple[Any, int | None]:
        row = self.rows[int(index)]
        raw = image_of(row, self.column, self.name(index))
        return raw, row[self.label] if self.label else None


def _remote(kind: str, name: str, spec: str, split: str, training: bool) -> Opened:
    """(source, split, classes) of a dataset that another library reads."""
    if kind == "hfds":
        return _hub(spec, split)
    with one_line_errors(spec, split):
        if kind == "torch":
            return _torchvision(name, spec, split)
        extras.require("webdataset", spec)
        from pelacli.data.shards import open_shards

        return open_shards(name, split, training=training), split, None


def _hub(spec: str, split: str) -> Opened:
    rows, split_name = open_split(spec, split)  # says so where the package is missing
    import datasets

    columns = rows.features
    images = [c for c, feature in columns.items() if isinstance(feature, datasets.Image)]
    if not images:
        raise RequestError(f"{spec}: no image column in {', '.join(columns)}")
    # Decoded here, where an unreadable one gets its error.
    rows = rows.cast_column(images[0], datasets.Image(decode=False))
    named = [c for c, feature in columns.items() if isinstance(feature, datasets.ClassLabel)]
    label = named[0] if named else next((c for c in ("label", "labels") if c in columns), None)
    classes = list(columns[named[0]].names) if named else None
    if left_behind := [name for name in classes or () if image_files.is_left_behind(name)]:
        raise RequestError(
            f"{spec}: {left_behind[0]} was left behind by a program and is no class; remove it"
        )
    return _Hub(rows, images[0], label, spec), split_name, classes


def _torchvision(name: str, spec: str, split: str) -> Opened:
    from timm.data import create_dataset

    # These sets have a training and a test part, and timm gives the latter for any other name.
    split_name = (
        "train" if split in SPLITS[0] else choose_split(split, ("test", "validation"), spec)
    )
    root = os.environ.get("PELA_DATA") or str(Path("~/.cache/pela/datasets").expanduser())
    os.makedirs(root, exist_ok=True)
    source = create_dataset(f"torch/{name}", root=root, split=split_name, download=True)
    return source, split_name, getattr(source, "classes", None)
