"""WebDataset shards, as timm reads them: its splits (``_info.json``), order and sharding."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import webdataset
from timm.data.dataset import IterableImageDataset
from timm.data.readers.reader_wds import ReaderWds
from torch.utils.data import IterableDataset

from pelacli.data import image_files
from pelacli.data.decoding import load
from pelacli.errors import RequestError


def open_shards(root: str, split: str, *, training: bool) -> IterableDataset[Any]:
    """The samples of a split in turn: (Pillow image as it is stored, class number)."""
    reader = _Reader(root, split=split, is_training=training)
    samples: IterableDataset[Any] = IterableImageDataset(root, reader=reader, split=split)
    return samples


class _Reader(ReaderWds):  # type: ignore[misc]
    """timm's reader, except that a sample that can't be read is an error. timm's leaves it out, and
    reads no images but JPEG, PNG and WebP."""

    ds: Any

    def _lazy_init(self) -> None:
        super()._lazy_init()
        *shards, _, _ = self.ds.pipeline  # all but timm's decoding
        sample = partial(_sample, label=self.split_info.alt_label)
        self.ds = webdataset.DataPipeline(*shards, webdataset.map(sample))


def _sample(files: dict[str, Any], label: str) -> dict[str, Any]:
    """A sample from its files; of one that can't be read, the error in the place of its image.

    Args:
        files: contents by ending.
        label: field of its JSON that is its class number; "": its .cls file is.
    """
    try:
        return _read(files, label)
    except RequestError as error:  # raised here it would end the stream for good
        return {"image": error, "target": -1}


def _read(files: dict[str, Any], label: str) -> dict[str, Any]:
    where = f"{files['__url__']}, {files['__key__']}"
    image = next((data for key, data in files.items() if f".{key}" in image_files.endings()), None)
    if image is None:
        kinds = ", ".join(key for key in files if not key.startswith("__"))
        raise RequestError(f"{where}: has no image among {kinds or 'its files'}")
    try:
        target = int(json.loads(files["json"])[label] if label else files["cls"])
    except (KeyError, TypeError, ValueError):
        wanted = f"number {label!r} in its .json" if label else "class number in a .cls file"
        raise RequestError(f"{where}: has no {wanted}; add it, or leave the sample out") from None
    return {"image": load(image, where), "target": target}
