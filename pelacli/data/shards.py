"""WebDataset shards, as timm reads them: its splits (``_info.json``), order and sharding."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import webdataset
from timm.data.dataset import IterableImageDataset
from timm.data.readers.reader_wds import ReaderWds
from torch.utils.data import IterableDataset, get_worker_info

from pelacli.data import image_files
from pelacli.data.decoding import load
from pelacli.errors import RequestError
from pelacli.messages import one_line, shown
from pelacli.system import own_files


def open_shards(root: str, split: str, *, training: bool) -> IterableDataset[Any]:
    """The samples of a split in turn: (Pillow image as it is stored, class number)."""
    reader = _Reader(root, split=split, is_training=training)
    samples: IterableDataset[Any] = IterableImageDataset(root, reader=reader, split=split)
    return samples


class _Reader(ReaderWds):  # type: ignore[misc]
    """timm's reader, except that a sample or a shard that can't be read is an error. timm's leaves
    it out, and reads no images but JPEG, PNG and WebP."""

    ds: Any

    def __init__(self, root: str, **options: Any) -> None:
        super().__init__(root, **options)
        if self.split_info.name and not urlparse(root).scheme:
            for name in self.split_info.filenames:
                _check(Path(root), name)

    def _lazy_init(self) -> None:
        if get_worker_info() is None:  # a worker's own seed is another one in each epoch
            self.worker_seed = self.common_seed + self.epoch_count.value
        super()._lazy_init()
        *shards, _, _ = self.ds.pipeline  # all but timm's decoding
        names = {os.path.join(self.root, name) for name in self.split_info.filenames}
        damage: list[RequestError] = []
        for stage in shards:
            if "handler" in getattr(stage, "kw", {}):
                stage.kw["handler"] = partial(_note, names, damage)
        samples = partial(_samples, label=self.split_info.alt_label, damage=damage)
        self.ds = webdataset.DataPipeline(*shards, samples)


def _check(root: Path, name: Any) -> None:
    """Refuse a shard that is not there, or is no file below the directory: a name may be a command
    to webdataset.

    Raises:
        RequestError: naming it.
    """
    path = PurePosixPath(name) if isinstance(name, str) and "\0" not in name else PurePosixPath("/")
    if path.is_absolute() or ".." in path.parts or urlparse(str(name)).scheme:
        raise RequestError(
            f"{root}: its _info.json names {shown(name)}, which is no file of this directory; "
            "mend it"
        )
    own_files.check_ends(root / path)
    if not (root / path).is_file():
        raise RequestError(f"{root / path}: is named in _info.json, and is not there; put it there")


def _note(names: Container[object], damage: list[RequestError], error: Exception) -> bool:
    """Take note of an error of webdataset's, which then goes on with the next shard.

    Args:
        names: the shards.
        damage: gets what is wrong.
    """
    what = one_line(str(error.args[0]).partition(" @ ")[0], 160) if error.args else "no tar file"
    last = error.args[-1] if error.args else None
    if last is None:  # of one file in a shard, which the text names
        damage.append(RequestError(f"{what}; mend the shard"))
    elif last in names:
        damage.append(RequestError(f"{last}: can't be read to its end ({what}); fetch it again"))
    else:
        raise error  # it comes back with the name of the shard
    return True


def _samples(
    shards: Iterable[dict[str, Any]], label: str, damage: list[RequestError]
) -> Iterator[dict[str, Any]]:
    """Samples, and in the place of what is missing the error."""
    for files in shards:
        while damage:
            yield _missing(damage.pop(0))
        yield _sample(files, label)
    while damage:
        yield _missing(damage.pop(0))


def _missing(error: RequestError) -> dict[str, Any]:
    return {"image": error, "target": -1}


def _sample(files: dict[str, Any], label: str) -> dict[str, Any]:
    """A sample from its files; of one that can't be read, the error in the place of its image.

    Args:
        files: contents by ending.
        label: field of its JSON that is its class number; "": its .cls file is.
    """
    try:
        return _read(files, label)
    except RequestError as error:  # raised here it would end the stream for good
        return _missing(error)


def _read(files: dict[str, Any], label: str) -> dict[str, Any]:
    where = f"{files['__url__']}, {files['__key__']}"
    image = next((data for key, data in files.items() if f".{key}" in image_files.endings()), None)
    if image is None:
        kinds = ", ".join(key for key in files if not key.startswith("__"))
        raise RequestError(f"{where}: has no image among {kinds or 'its files'}")
    try:
        target = int(json.loads(files["json"])[label] if label else files["cls"])
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        wanted = f"number {label!r} in its .json" if label else "class number in a .cls file"
        raise RequestError(f"{where}: has no {wanted}; add it, or leave the sample out") from None
    return {"image": load(image, where), "target": target}
