"""Images with captions, in the JSON that ALBEF is pre-trained from.

A file is a list of ``{"image": path, "caption": text or [texts]}``. Paths are absolute, or seen
from the file's folder (or from another one that is named).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli.errors import RequestError
from pelacli.sources import choose_split

Raw = tuple[str, tuple[str, ...], int]  # image path, its captions, the image's number


@dataclass
class Captions:
    """Samples by index: (image path, captions, number of the image). Entries that show the same
    image have the same number."""

    rows: list[Raw]
    places: list[tuple[str, int]]  # file, its first sample

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Raw:
        return self.rows[index]

    def name(self, index: int) -> str:
        """Where a sample stands, for errors."""
        file, first = [place for place in self.places if place[1] <= index][-1]
        return f"{file}, entry {index - first} ({self.rows[index][0]})"


def read(spec: str, split: str, images: str | None = None) -> tuple[Captions, str | None]:
    """The samples of a split.

    Args:
        spec: a JSON file (it has no splits), or a folder of such files. A file belongs to the split
            that its name begins with: ``train.json``, ``train_coco.json``, ``val.json``. Without
            files of such names there are no splits, and any split is all of them.
        images: the folder that image paths are seen from, in place of each file's own.

    Returns:
        (samples, the split's name; None where there is no other split to be told from).

    Raises:
        RequestError: no such file or split, or a file that isn't of this form; file and entry are
            named.
    """
    path, name = Path(spec).expanduser(), None
    if path.is_dir():
        chosen, name = _of_split(path, split)
    elif path.is_file():
        chosen = [path]
    else:
        raise RequestError(f"{spec}: no such folder or JSON file of images and captions")
    found = Captions([], [])
    numbers: dict[str, int] = {}
    for file in chosen:
        found.places.append((str(file), len(found)))
        root = file.parent if images is None else Path(images).expanduser()
        for at, entry in enumerate(_entries(file)):
            image, texts = _checked(entry, f"{file}, entry {at}")
            image = str(root / image)
            found.rows.append((image, texts, numbers.setdefault(image, len(numbers))))
    if not found.rows:
        raise RequestError(f"{spec}: the split {name or split} is empty")
    return found, name


def plain(caption: str, words: int = 30) -> str:
    """A caption as ALBEF reads it: lower case, without punctuation, at most so many words."""
    text = re.sub(r"[,.'!?\"()*#:;~]", "", caption.lower()).replace("<person>", "person")
    return " ".join(re.sub(r"[-/]", " ", text).split()[:words])


def _of_split(folder: Path, split: str) -> tuple[list[Path], str | None]:
    files: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.json")):
        named = re.match(r"(train|val|eval|test)[a-z]*(?=[._-]|$)", file.stem)
        files.setdefault(named[0] if named else "", []).append(file)
    if not files:
        raise RequestError(f"{folder}: no JSON files (train.json, val.json) in it")
    others = files.pop("", [])
    if not files:
        return others, None
    name = choose_split(split, list(files), str(folder))
    return files[name], name if len(files) > 1 else None


def _entries(file: Path) -> list[Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{file}: not readable JSON ({error})") from None
    if not isinstance(found, list):
        raise RequestError(f'{file}: not a list of {{"image": …, "caption": …}}')
    return found


def _checked(entry: Any, where: str) -> tuple[str, tuple[str, ...]]:
    image = entry.get("image") if isinstance(entry, dict) else None
    if not isinstance(image, str) or not image:
        raise RequestError(f'{where}: has no "image", the path of one')
    caption = entry.get("caption")
    texts = caption if isinstance(caption, list) else [caption]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise RequestError(f'{where}: "caption" is neither a text nor a list of texts')
    return image, tuple(texts)
