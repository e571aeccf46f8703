"""Which files of a directory transformers reads a model's weights from."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from pelacli.errors import RequestError
from pelacli.manifest import digests
from pelacli.messages import shown
from pelacli.system import json_files, own_files

_RESTORE = "restore the file"
_WHOLE = "model.safetensors"
_INDEX = ".index.json"  # what the name of an index ends with


def files_of(directory: Path, config: Any) -> list[Path]:
    """The files that transformers reads: the one named model.safetensors, or those that its index
    names, or what the configuration names in the place of both.

    Raises:
        RequestError: an index is damaged, or a file is named that is no safetensors file of this
            directory. transformers itself would read any file, wherever it lies.
    """
    named = getattr(config, "transformers_weights", None)
    if named is None and not (directory / _WHOLE).exists():
        named = f"{_WHOLE}{_INDEX}"
        if not (directory / named).exists():
            return digests.plain_weight_files(directory)
    name = _plain_name(named or _WHOLE, f"{directory / 'config.json'}: transformers_weights")
    own_files.check(directory, directory / name)
    return _of_index(directory / name) if name.endswith(_INDEX) else [directory / name]


def _of_index(index: Path) -> list[Path]:
    """The files that an index names, all beside it."""
    named = json_files.read_as(dict, index, _RESTORE).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise RequestError(f"{index}: has no weight_map from tensors to files; {_RESTORE}")
    names = {_plain_name(name, f"{index}: {shown(tensor)}") for tensor, name in named.items()}
    files = [index.with_name(name) for name in sorted(names)]
    for file in files:
        if not file.name.endswith(".safetensors"):
            raise RequestError(f"{index}: names the index {shown(file.name)}; {_RESTORE}")
        own_files.check(index.parent, file)
    return files


def _plain_name(name: Any, where: str) -> str:
    """The name of a file beside the one that names it."""
    is_plain = isinstance(name, str) and name == PurePath(name).name and "\0" not in name
    if not is_plain or not name.endswith((".safetensors", f".safetensors{_INDEX}")):
        raise RequestError(
            f"{where} names {shown(name)}, which is no safetensors file of this directory; "
            f"{_RESTORE}, or put the file there"
        )
    return str(name)
