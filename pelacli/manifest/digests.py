"""Which files hold a model's weights, and their SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pelacli.system import bytes_done, own_files

WEIGHTS = "model*.safetensors"  # of an artefact
_PIECE = 1 << 20  # bytes that are read at once


def digest_file(path: Path | str) -> str:
    """SHA-256 of a file's content in hexadecimal; reads it piece by piece."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            bytes_done.done(len(piece))
    return digest.hexdigest()


def digest_json(content: Any) -> str:
    """SHA-256 of what JSON can hold, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digest_files(files: Iterable[Path]) -> str:
    """SHA-256 of each file, in their order, as `of_several` joins them."""
    files = list(files)
    with bytes_done.part("hashing", bytes_of(files)):
        return of_several(map(digest_file, files))


def bytes_of(files: Iterable[Path]) -> int:
    """How large files are in all."""
    return sum(file.stat().st_size for file in files)


def of_several(digests: Iterable[str]) -> str:
    """The digests of several files, in their order, with commas between them."""
    return ",".join(digests)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of an artefact that hold its model: one, or all shards in order.

    Raises:
        RequestError: one of them is no file of the directory.
    """
    return _files(directory, WEIGHTS)


def weights_digest(directory: Path) -> str:
    """SHA-256 of an artefact's weights; of all shards in order, where there are several."""
    return digest_files(weight_files(directory))


def weights_bytes(path: Path) -> int | None:
    """What every command calls the size of a model: the bytes of its safetensors files.

    Args:
        path: a directory, or one such file.

    Returns:
        None where there are none.
    """
    is_weights = path.suffix == ".safetensors" and path.is_file()
    files = [path] if is_weights else weight_files(path)
    return bytes_of(files) or None


def plain_weight_files(path: Path) -> list[Path]:
    """The files that hold the weights of a plain model.

    Args:
        path: a file, which holds them itself, or a directory with safetensors files.

    Returns:
        the files in order; empty where there are none.

    Raises:
        RequestError: one of them is no file of the directory.
    """
    if path.is_dir():
        return _files(path, "*.safetensors")
    return [path] if path.is_file() else []


def _files(directory: Path, pattern: str) -> list[Path]:
    files = sorted(directory.glob(pattern))
    for file in files:
        own_files.check(directory, file)
    return files
