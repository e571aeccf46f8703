"""WebDataset shards for tests."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

Sample = Mapping[str, bytes]  # ending → content of the file


def encoded(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    """An image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def write_split(root: Path, name: str, *shards: Sequence[Sample]) -> dict[str, Any]:
    """Write the shards of a split, and give what ``_info.json`` says of it."""
    files = [f"x-{name}-{number}.tar" for number in range(len(shards))]
    count = 0
    for file, samples in zip(files, shards, strict=True):
        with tarfile.open(root / file, "w") as tar:
            for sample in samples:
                for ending, data in sample.items():
                    member = tarfile.TarInfo(f"{count:04}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                count += 1
    lengths = list(map(len, shards))
    return {"name": name, "num_samples": count, "filenames": files, "shard_lengths": lengths}


def write_info(root: Path, *splits: Mapping[str, Any]) -> None:
    """Write ``_info.json``."""
    named = {split["name"]: split for split in splits}
    (root / "_info.json").write_text(json.dumps({"splits": named}))
