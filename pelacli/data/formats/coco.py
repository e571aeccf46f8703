"""Images with boxes around their objects, in COCO's JSON.

What its files look like: https://cocodataset.org/#format-data. Two layouts are read::

    ROOT/annotations/instances_SPLIT.json   images in ROOT/SPLIT, ROOT/images/SPLIT or ROOT/images
    ROOT/SPLIT/_annotations.coco.json       images beside it

A year at the end of a split's name may be left out: "train" finds ``instances_train2017.json``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli.console import warn
from pelacli.data.formats import json_files
from pelacli.data.formats.objects import OVER, Objects
from pelacli.data.splits import choose_split
from pelacli.errors import RequestError
from pelacli.system import own_files

_YEAR = re.compile(r"\d{4}$")

_Id = int | float | str


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
    candidates = {**beside, **files}
    # "train" for "train2017", where there is one such year
    years = {name: _YEAR.sub("", name) for name in candidates}
    plain = {
        short: name
        for name, short in years.items()
        if short not in candidates and list(years.values()).count(short) == 1
    }
    chosen = choose_split(split, [*candidates, *plain], spec)
    name = plain.get(chosen, chosen)
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
    content = _content(file)
    labels, names = _categories(content["categories"], file)
    images = _by_id(content["images"], file, "image")
    for number, picture in images.items():
        for side in ("width", "height"):
            _side(picture, side, f"{file}: image {number!r}")
    objects = _objects(content["annotations"], images, labels, file)
    samples = [
        (
            _image_file(file, folders, image),
            Objects.of(objects[key], image.get("width"), image.get("height")),
        )
        for key, image in images.items()
    ]
    if not samples:
        raise RequestError(f"{file}: has no images")
    return Coco(samples), names


def _content(file: Path) -> dict[str, Any]:
    """An annotation file with its three lists."""
    try:
        own_files.check_ends(file)
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{file}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise RequestError(f"{file}: no COCO file: it is a list, not an object")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise RequestError(f"{file}: no COCO file: it has no list {key!r}")
    return content


def _categories(rows: Sequence[Any], file: Path) -> tuple[dict[_Id, int], list[str]]:
    """(id → label, the names by label); labels are in the order of the ids."""
    known = _by_id(rows, file, "category")
    if not known:
        raise RequestError(f"{file}: has no categories")
    try:
        ids = sorted(known, key=int)
        names = [str(known[key]["name"]) for key in ids]
    except KeyError as error:
        raise RequestError(f"{file}: a category lacks {error}") from None
    except (ValueError, OverflowError) as error:
        raise RequestError(f"{file}: category ids are whole numbers ({error})") from None
    return {key: label for label, key in enumerate(ids)}, names


def _objects(
    annotations: Sequence[Any],
    images: Mapping[_Id, Mapping[str, Any]],
    labels: Mapping[_Id, int],
    file: Path,
) -> dict[_Id, list[tuple[list[float], int, bool, float]]]:
    """Image id → (corners, label, whether a crowd, area) of each of its objects with an area."""
    objects: dict[_Id, list[tuple[list[float], int, bool, float]]] = {key: [] for key in images}
    empty = 0
    for annotation, where in json_files.listed(annotations, file, "annotations"):
        where = f"{file}: annotation {annotation['id']}" if "id" in annotation else where
        image = images.get(_id(annotation, "image_id", where))
        if image is None:
            raise RequestError(f"{where}: there is no image {annotation['image_id']!r}")
        where += f" of image {image.get('file_name')}"
        label = labels.get(_id(annotation, "category_id", where))
        if label is None:
            known = ", ".join(str(key) for key in [*labels][:8])
            raise RequestError(
                f"{where}: unknown category {annotation['category_id']!r}; there are {known}"
            )
        box = corners(annotation.get("bbox"), where, image.get("width"), image.get("height"))
        if box is None:
            empty += 1
            continue
        area = area_of(annotation, box, where)
        objects[image["id"]].append((box, label, is_crowd(annotation, where), area))
    if empty:
        warn(f"{file}: {empty} boxes have no area and are left out")
    return objects


def _by_id(rows: Sequence[Any], file: Path, kind: str) -> dict[_Id, Mapping[str, Any]]:
    """Images or categories by their ids."""
    rows_by_id: dict[_Id, Mapping[str, Any]] = {}
    for row, where in json_files.listed(rows, file, "images" if kind == "image" else "categories"):
        key = _id(row, "id", where)
        if key in rows_by_id:
            raise RequestError(f"{where}: {kind} id {key} comes twice; give each {kind} its own")
        rows_by_id[key] = row
    return rows_by_id


def _id(row: Mapping[str, Any], key: str, where: str) -> _Id:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        what = f"lacks {key!r}" if key not in row else f"{key!r} is no identifier: {value!r:.40}"
        raise RequestError(f"{where}: {what}")
    return value


def _side(image: Mapping[str, Any], side: str, where: str) -> None:
    """Refuse a width or height that is no length; one that is not told stays unknown."""
    value = image.get(side)
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    if value is not None and not good:
        raise RequestError(
            f"{where}: {side!r} is no number of pixels: {value!r:.40}; give the image's, or leave "
            "it out"
        )


def area_of(annotation: Mapping[str, Any], box: Sequence[float], where: str) -> float:
    """Pixels of an object; those of its box where none are told.

    Raises:
        RequestError: they are no number.
    """
    value = annotation.get("area")
    try:
        area = float(value or (box[2] - box[0]) * (box[3] - box[1]))
    except (TypeError, ValueError, OverflowError):
        area = math.nan
    if not math.isfinite(area):
        raise RequestError(f"{where}: 'area' is no number of pixels: {value!r:.40}")
    return area


def is_crowd(annotation: Mapping[str, Any], where: str) -> bool:
    """Whether an annotation is of a crowd, whose objects are not told apart.

    Raises:
        RequestError: it says neither.
    """
    crowd = annotation.get("iscrowd") or 0
    if crowd not in (0, 1):  # a text "0" would count as one
        raise RequestError(f"{where}: 'iscrowd' is neither 0 nor 1: {crowd!r:.40}")
    return bool(crowd)


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
        if min(left, top) < -OVER or right > width + OVER or bottom > height + OVER:
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
    searched = " or ".join(str(folder) for folder in folders)
    raise RequestError(f"{file}: image {image.get('id')!r}: there is no {name} in {searched}")
