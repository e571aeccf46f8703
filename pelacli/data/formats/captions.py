"""Images with captions: ALBEF's JSON, COCO's captions, or a Hugging Face dataset.

ALBEF's form is a list of ``{"image": path, "caption": text or list of texts, "image_id": any}``;
entries of one image_id (without one, of one image) show the same image.
COCO's is ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pelacli.data.formats import hub_rows, json_files
from pelacli.errors import RequestError


@dataclass(frozen=True)
class Captioned:
    """An image and all that is said of it.

    Attributes:
        image: a path, or a `hub.HubImage`.
        number: of the image, 0, 1, … in the split.
        where: its place in words, for errors.
    """

    image: Any
    number: int
    where: str
    captions: list[str] = field(default_factory=list)


def read(
    spec: str, split: str, images: str | None, *, together: bool = True
) -> tuple[list[Captioned], str | None]:
    """The images of a split, in the order of its files.

    Args:
        spec: a JSON file, a folder with some for each split (see `json_files.files`), or
            hfds/… (`pelacli.data.hub.open_split`).
        images: folder that image paths start from; None: that of the JSON file.
        together: each image once, with all of its captions. Else, as ALBEF is pre-trained: once
            for every entry that shows it, with the same number; several files may be a split.

    Returns:
        (images, the split's name where there are splits).

    Raises:
        RequestError: file and entry of a mistake.
    """
    if spec.startswith("hfds/"):
        names = ("caption", "captions", "text", "sentence", "sentences")
        rows, part = hub_rows.rows(spec, split, {"caption": names})
        return [
            Captioned(image, number, where, json_files.texts(fields, "caption", where))
            for number, (image, fields, where) in enumerate(rows)
        ], part
    files, name = json_files.files(spec, split, several=not together)
    numbers: dict[str, int] = {}
    entries = [
        Captioned(image, numbers.setdefault(key, len(numbers)), where, captions)
        for file in files
        for image, captions, key, where in _rows(file, images)
    ]
    if not entries:
        raise RequestError(f"{files[0]}: no entries")
    return _merged(entries) if together else entries, name


def _merged(entries: Iterable[Captioned]) -> list[Captioned]:
    """Each image once, where it comes first, with the captions of all its entries."""
    by_number: dict[int, Captioned] = {}
    for one in entries:
        first = by_number.setdefault(one.number, replace(one, captions=[]))
        first.captions.extend(one.captions)
    return list(by_number.values())


def _rows(file: Path, root: str | None) -> list[tuple[str, list[str], str, str]]:
    """(path, captions, what identifies the image, place) of each entry."""
    content = json_files.read(file)
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return _coco(content, file, root)
    rows = []
    for entry, where in json_files.listed(content, file):
        image = json_files.image(entry, where, root)
        key = json_files.number(entry, "image_id", where) if "image_id" in entry else None
        same = image if key is None else f"{file} {key}"  # numbers are a file's own, paths are not
        rows.append((image, json_files.texts(entry, "caption", where), same, where))
    return rows


def _coco(
    content: dict[str, Any], file: Path, root: str | None
) -> list[tuple[str, list[str], str, str]]:
    paths = {}
    for entry, where in json_files.listed(content["images"], file, "images"):
        name = json_files.text(entry, "file_name", where)
        base = Path(root).expanduser() if root else file.parent
        key = json_files.number(entry, "id", where)
        if key in paths:
            raise RequestError(f"{where}: image id {key} comes twice; give each image its own")
        paths[key] = str(base / name)
    rows = []
    for entry, where in json_files.listed(content["annotations"], file, "annotations"):
        key = json_files.number(entry, "image_id", where)
        if key not in paths:
            raise RequestError(f"{where}: image_id {key} is not among the images")
        caption = json_files.text(entry, "caption", where)
        rows.append((paths[key], [caption], f"{file} {key}", where))
    return rows
