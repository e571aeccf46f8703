"""Images with boxes around their objects: COCO's JSON, and hub datasets with an ``objects`` column.

What COCO's files look like: https://cocodataset.org/#format-data. Two layouts are read::

    ROOT/annotations/instances_SPLIT.json   images in ROOT/SPLIT, ROOT/images/SPLIT or ROOT/images
    ROOT/SPLIT/_annotations.coco.json       images beside it

A year at the end of a split's name may be left out: "train" finds ``instances_train2017.json``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelacli.console import warn
from pelacli.errors import RequestError
from pelacli.sources import choose_split

# How far a box may reach over its image's edge, in pixels: tools round in their own ways.
_OVER = 2.0
_YEAR = re.compile(r"\d{4}$")


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
        boxes: [n, 4] left, top, right, bottom, in pixels of the image.
        labels: [n], places of their classes in the list of class names.
        crowd: [n], whether the box is around a crowd, whose members have none of their own.
        area: [n], pixels of the objects themselves, by which COCO tells small from large.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float32]

    @classmethod
    def of(cls, rows: Sequence[tuple[Sequence[float], int, bool, float]]) -> Objects:
        """From (box, label, crowd, area) of each."""
        return cls(
            np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
            np.array([row[1] for row in rows], np.int64),
            np.array([row[2] for row in rows], np.bool_),
            np.array([row[3] for row in rows], np.float32),
        )


@dataclass
class Coco:
    """The images of a split: (path, its number in the split, its objects) by index."""

    images: list[tuple[Path, Objects]]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Path, int, Objects]:
        path, objects = self.images[index]
        return path, index, objects

    def name(self, index: int) -> str:
        return str(self.images[index][0])


def find(spec: str, split: str) -> tuple[Path, list[Path], str] | None:
    """(annotation file, folders its images may be in, the split's name); None where the folder has
    no COCO files at all.

    Raises:
        RequestError: it has some, but none of this split.
    """
    root = Path(spec).expanduser()
    if not root.is_dir():
        return None
    files = {
        file.stem.removeprefix("instances_"): file
        for file in sorted((root / "annotations").glob("instances_*.json"))
    }
    beside = {file.parent.name: file for file in sorted(root.glob("*/_annotations.coco.json"))}
    if not files and not beside:
        return None
    there = {**beside, **files}
    # "train" for "train2017", where there is one such year
    years = {name: _YEAR.sub("", name) for name in there}
    plain = {
        short: name
        for name, short in years.items()
        if short not in there and list(years.values()).count(short) == 1
    }
    found = choose_split(split, [*there, *plain], spec)
    name = plain.get(found, found)
    if name in files:
        return files[name], [root / name, root / "images" / name, root / "images", root], name
    return beside[name], [beside[name].parent], name


def read(file: Path, folders: Sequence[Path]) -> tuple[Coco, list[str]]:
    """Read one annotation file.

    Categories become labels 0, 1, … in the order of their ids. A box without any area is left out
    with a warning, as COCO's own files have some.

    Returns:
        (its images, class names).

    Raises:
        RequestError: one line that names the file and the image or annotation that is wrong.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{file}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise RequestError(f"{file}: no COCO file: it is a list, not an object")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise RequestError(f"{file}: no COCO file: it has no list {key!r}")
    try:
        categories = sorted(content["categories"], key=lambda category: int(category["id"]))
        labels = {category["id"]: label for label, category in enumerate(categories)}
        names = [str(category["name"]) for category in categories]
        images = {image["id"]: image for image in content["images"]}
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"{file}: a category or image lacks {error}") from None
    if not names:
        raise RequestError(f"{file}: has no categories")
    rows: dict[Any, list[tuple[list[float], int, bool, float]]] = {key: [] for key in images}
    empty = 0
    for annotation in content["annotations"]:
        where = f"{file}: annotation {annotation.get('id', '?')}"
        image = images.get(annotation.get("image_id"))
        if image is None:
            raise RequestError(f"{where}: there is no image {annotation.get('image_id')!r}")
        where += f" of image {image.get('file_name')}"
        label = labels.get(annotation.get("category_id"))
        if label is None:
            known = ", ".join(str(key) for key in list(labels)[:8])
            raise RequestError(
                f"{where}: unknown category {annotation.get('category_id')!r}; there are {known}"
            )
        box = corners(annotation.get("bbox"), where, image.get("width"), image.get("height"))
        if box is None:
            empty += 1
            continue
        area = float(annotation.get("area") or (box[2] - box[0]) * (box[3] - box[1]))
        rows[image["id"]].append((box, label, bool(annotation.get("iscrowd", 0)), area))
    if empty:
        warn(f"{file}: {empty} boxes have no area and are left out")
    found = [
        (_image_file(file, folders, image), Objects.of(rows[key])) for key, image in images.items()
    ]
    if not found:
        raise RequestError(f"{file}: has no images")
    return Coco(found), names


def corners(
    box: Any, where: str, width: float | None, height: float | None, form: str = "xywh"
) -> list[float] | None:
    """(left, top, right, bottom) of a box within its image; None where it has no area.

    Args:
        box: left, top, width, height; with ``form`` "xyxy" right and bottom in place of these.
        where: names it in errors.
        width, height: of the image; None: unknown, and not checked.

    Raises:
        RequestError: it is no box, or lies outside of the image.
    """
    try:
        left, top, third, fourth = (float(value) for value in box)
    except (TypeError, ValueError):
        raise RequestError(f"{where}: bbox {box!r} is not four numbers") from None
    right, bottom = (third, fourth) if form == "xyxy" else (left + third, top + fourth)
    if not all(map(math.isfinite, (left, top, right, bottom))) or right < left or bottom < top:
        raise RequestError(f"{where}: bbox {list(box)} is degenerate; it is read as {form}")
    if width is not None and height is not None:
        if min(left, top) < -_OVER or right > width + _OVER or bottom > height + _OVER:
            raise RequestError(
                f"{where}: bbox {list(box)} (read as {form}) lies outside of the image, "
                f"{width}x{height}"
            )
        right, bottom = min(right, float(width)), min(bottom, float(height))
    left, top = max(left, 0.0), max(top, 0.0)
    return None if right <= left or bottom <= top else [left, top, right, bottom]


def _image_file(file: Path, folders: Sequence[Path], image: Mapping[str, Any]) -> Path:
    name = image.get("file_name")
    if not isinstance(name, str):
        raise RequestError(f"{file}: image {image.get('id')!r} has no file_name")
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    places = " or ".join(str(folder) for folder in folders)
    raise RequestError(f"{file}: image {image.get('id')!r}: there is no {name} in {places}")


# Hub datasets ------------------------------------------------------------------------------------


@dataclass
class Rows:
    """The rows of a hub dataset: (image, number, objects) by index."""

    rows: Any
    spec: str
    image: str
    column: str
    box: str
    category: str
    classes: list[str]
    form: str

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return f"{self.spec}, row {index}"

    def __getitem__(self, index: int) -> tuple[Any, int, Objects]:
        row = self.rows[int(index)]
        raw = row[self.image]
        if isinstance(raw, dict):  # an undecoded image
            raw = raw["bytes"] or raw["path"]
        found = []
        for number, entry in enumerate(_entries(row[self.column])):
            where = f"{self.name(index)}, object {number}"
            label = entry[self.category]
            if not isinstance(label, int) or not 0 <= label < len(self.classes):
                raise RequestError(
                    f"{where}: category {label!r} is not 0 to {len(self.classes) - 1}"
                )
            box = corners(entry[self.box], where, row.get("width"), row.get("height"), self.form)
            if box is not None:
                area = float(entry.get("area") or (box[2] - box[0]) * (box[3] - box[1]))
                found.append((box, label, bool(entry.get("iscrowd", 0)), area))
        return raw, int(index), Objects.of(found)


def hub(spec: str, split: str, form: str) -> tuple[Rows, list[str], str]:
    """(samples, class names, the split's name) of ``hfds/NAME`` with an ``objects`` column of
    ``bbox`` and ``category`` (or ``label``), whose class names are known or numbers.

    Raises:
        RequestError: it cannot be opened, or has no such columns.
    """
    import datasets

    name = spec.removeprefix("hfds/")
    try:
        found = split
        if "[" not in split:  # "train[:80%]" is theirs
            found = choose_split(split, datasets.get_dataset_split_names(name), spec)
        rows = datasets.load_dataset(name, split=found)
    except RequestError:
        raise
    except Exception as error:  # every transport has its own
        told = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(f"{spec}, split {split!r}: cannot be opened: {told[:300]}") from None
    source = rows_of(rows, spec, form)
    return source, source.classes, found


def rows_of(rows: Any, spec: str, form: str) -> Rows:
    """The samples of a `datasets.Dataset`; see `hub`."""
    import datasets

    columns = rows.features
    image = next((c for c, f in columns.items() if isinstance(f, datasets.Image)), None)
    column = next((c for c in ("objects", "annotations") if c in columns), None)
    if image is None or column is None:
        raise RequestError(
            f"{spec}: needs an image and an 'objects' column; it has {', '.join(columns)}"
        )
    inner = columns[column]
    for _ in range(2):  # List({…}), and {name: List(…)} which older versions write
        inner = getattr(inner, "feature", inner)
    box = next((c for c in ("bbox", "box", "bboxes") if c in inner), None)
    category = next((c for c in ("category", "label", "category_id", "labels") if c in inner), None)
    if box is None or category is None:
        raise RequestError(f"{spec}: {column!r} needs bbox and category; it has {', '.join(inner)}")
    kind = getattr(inner[category], "feature", inner[category])
    if isinstance(kind, datasets.ClassLabel):
        classes = list(kind.names)
    else:
        used = [e[category] for entries in rows[column] for e in _entries(entries)]
        if not used or not all(isinstance(label, int) for label in used):
            raise RequestError(f"{spec}: {column}.{category} holds no class numbers")
        classes = [str(number) for number in range(max(used) + 1)]
    rows = rows.cast_column(image, datasets.Image(decode=False))
    return Rows(rows, spec, image, column, box, category, classes, form)


def _entries(objects: Any) -> Iterable[dict[str, Any]]:
    """A row's objects one by one, whether it is a list of them or a list for each of their keys."""
    if isinstance(objects, Mapping):
        keys = list(objects)
        return [
            dict(zip(keys, values, strict=True))
            for values in zip(*(objects[key] for key in keys), strict=True)
        ]
    return list(objects)
