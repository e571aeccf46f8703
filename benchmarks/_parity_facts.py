"""What `parity.py` compares: a command's output and files as facts, a name and a text each.

JSON gives a fact per value, a safetensors file one per tensor, other text one per line. So the
first difference between two runs has a name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Keys of JSON documents that are not compared, wherever they stand, and why.
IGNORED = {
    "seconds": "how long a step took",
    "samples_per_s": "how fast training went",
    "versions": "of Python, pela and the libraries; the latter are compared once for the whole run",
    "pela": "version of the pela that wrote a file",
}
# Not in the table, as they never come up: every path is relative to the temporary directory, and no
# case times a forward pass.


def _values(document: Any, name: str) -> Iterator[tuple[str, str]]:
    """Every value of a JSON document, with its path, and the order of the keys."""
    if isinstance(document, dict):
        kept = {key: value for key, value in document.items() if key not in IGNORED}
        yield f"{name} (keys)", " ".join(kept)
        for key, value in kept.items():
            yield from _values(value, f"{name}.{key}")
    elif isinstance(document, list):
        yield f"{name} (length)", str(len(document))
        for index, value in enumerate(document):
            yield from _values(value, f"{name}.{index}")
    else:
        yield name, json.dumps(document)


def of_text(text: str, name: str) -> Iterator[tuple[str, str]]:
    """A JSON document value by value; other text line by line, where a line may be a document."""
    try:
        yield from _values(json.loads(text), name)
        return
    except ValueError:
        parts = text.splitlines()
    if len(parts) < 2:
        yield name, text
        return
    yield f"{name} (lines)", str(len(parts))
    for number, line in enumerate(parts, 1):
        yield from of_text(line, f"{name} line {number}")


def _tensors(file: Path, name: str) -> Iterator[tuple[str, str]]:
    """Each tensor of a safetensors file, and what its header says beside them."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    for key, text in header.pop("__metadata__", {}).items():
        yield from of_text(text, f"{name} header {key}")
    yield f"{name} (tensors)", str(len(header))
    for key, tensor in sorted(header.items()):
        first, end = (start + offset for offset in tensor["data_offsets"])
        digest = hashlib.sha256(content[first:end]).hexdigest()
        yield f"{name} {key}", f"{tensor['dtype']} {tensor['shape']} {digest}"


def of_file(file: Path, name: str) -> Iterator[tuple[str, str]]:
    """The content of a file, by its kind."""
    if file.suffix in (".safetensors", ".spectra"):
        yield from _tensors(file, name)
        return
    try:
        yield from of_text(file.read_text(encoding="utf-8"), name)
    except UnicodeDecodeError:
        yield name, hashlib.sha256(file.read_bytes()).hexdigest()
