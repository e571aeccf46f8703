"""WebDataset shards in a directory with timm's ``_info.json``, which names the splits."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import webdataset
from timm.data.readers.reader_wds import ReaderWds, SplitInfo
from torch.utils.data import IterableDataset

from pelacli.data import image_files
from pelacli.data.decoding import load
from pelacli.data.seeding import words
from pelacli.data.shard_rows import dealt, lengths_of, row
from pelacli.data.streams import Reader, Share
from pelacli.errors import RequestError
from pelacli.messages import one_line, shown
from pelacli.system import own_files

# Samples, before they are decoded, that a reader shuffles among each other, and how many of them it
# reads first; as timm has it.
_SHUFFLED, _FIRST = 8192, 2048

_Stage = Callable[[Iterable[dict[str, Any]]], Iterator[dict[str, Any]]]
_Tells = Callable[[str | None], bool]  # of None: a shard whose name is not known


def open_shards(root: str, split: str, *, training: bool) -> Shards:
    """The samples of a split in turn.

    Raises:
        RequestError: a shard is not there, or is no file below the directory.
    """
    return Shards(root, ReaderWds(root, split=split, is_training=training).split_info)


class Shards(IterableDataset[Any]):
    """(Pillow image as it is stored, class number) of the samples of a split.

    timm's reader leaves out what can't be read, reads no images but JPEG, PNG and WebP, and gives
    the processes of a group samples twice or never.

    Args:
        info: the split, as timm reads it from ``_info.json``.
    """

    def __init__(self, root: str, info: SplitInfo) -> None:
        if info.name and not urlparse(root).scheme:
            for name in info.filenames:
                _check(Path(root), name)
        self._paths = [os.path.join(root, name) for name in info.filenames]
        self._length, self._label = info.num_samples, info.alt_label
        self._lengths = lengths_of(self._paths, info.shard_lengths, info.num_samples)

    def __len__(self) -> int:
        return int(self._length)

    @property
    def shards(self) -> int:
        """How many there are."""
        return len(self._paths)

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return self.samples(Share(Reader()))

    def samples(self, share: Share) -> Iterator[tuple[Any, int]]:
        """What a reader takes of them. In the place of an image that can't be read is the error.
        Damage to a shard that several readers read is for one of them to tell."""
        paths = list(self._paths)
        if share.order is not None:
            random.Random(str(words(share.order))).shuffle(paths)
        paths, own, is_told = self._own(paths, share)
        damage: list[RequestError] = []
        note = partial(_note, frozenset(paths), is_told, damage)
        stages: list[Any] = [webdataset.tarfile_to_samples(handler=note), own]
        if share.mixing is not None:
            rng = random.Random(str(words(share.mixing)))
            stages.append(webdataset.shuffle(bufsize=_SHUFFLED, initial=_FIRST, rng=rng))
        stages.append(partial(_samples, label=self._label, damage=damage))
        for sample in webdataset.DataPipeline(partial(_urls, paths), *stages):
            yield sample["image"], sample["target"]

    def _own(self, paths: list[str], share: Share) -> tuple[list[str], _Stage, _Tells]:
        """(the shards that the reader opens, what takes its own of their samples, what says whether
        damage to a shard is for it to tell)."""
        reader = share.reader
        if share.owns is not None:
            return paths, partial(_owned, share.owns), lambda shard: reader.number == 0
        if share.takes is not None and self._lengths:
            own = row(paths, self._lengths, share.takes, reader.number)
            if own is not None:
                return list(own.parts), own, own.has_begun
        return dealt(paths, reader.number, reader.readers), iter, lambda shard: True


def _urls(paths: Iterable[str]) -> Iterator[dict[str, str]]:
    """Shards as webdataset's stages take them."""
    return ({"url": path} for path in paths)


def _owned(
    owns: Callable[[int], bool], samples: Iterable[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The samples at the positions that a reader owns."""
    return (sample for at, sample in enumerate(samples) if owns(at))


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


def _note(
    names: Container[object],
    is_told: _Tells,
    damage: list[RequestError],
    error: Exception,
) -> bool:
    """Take note of an error of webdataset's, which then goes on with the next shard.

    Args:
        names: the shards.
        is_told: whether what is wrong with a shard is for this reader to tell.
        damage: gets what is wrong.
    """
    what = one_line(str(error.args[0]).partition(" @ ")[0], 160) if error.args else "no tar file"
    last = error.args[-1] if error.args else None
    if last is None:  # of one file in a shard, which the text names
        text = f"{what}; mend the shard"
    elif last in names:
        text = f"{last}: can't be read to its end ({what}); fetch it again"
    else:
        raise error  # it comes back with the name of the shard
    if is_told(last):
        damage.append(RequestError(text))
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
