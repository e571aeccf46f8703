"""Expressions that refer to a thing in an image: RefCOCO+ in ALBEF's JSON.

Training: a list of ``{"image": path, "text": text}``. To be judged, an entry also has the box of
what is meant, ``"bbox": [x, y, width, height]`` in pixels, and may have ``"split"`` ("val",
"testA", …) and ``"image_id"`` (else the last number in the image's name); or it has a ``"ref_id"``
and a further file lists ``{"ref_id", "bbox", "split", "image_id"}``. REFER keeps those in pickles,
which pela never reads; the recipe shows how to make the list of them.

The boxes to choose from: ``{image_id: [[x, y, width, height, …], …]}``, ALBEF's dets.json.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli.data.formats import json_files
from pelacli.errors import RequestError

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Referring:
    """An expression; ``box`` and the ``boxes`` to choose from are of those to be judged.

    Attributes:
        box: x, y, width, height in pixels.
        split: which part of the data it is of, for figures of their own; None: not told.
        where: its place in words, for errors.
    """

    image: str
    text: str
    image_id: str
    where: str
    box: Box | None = None
    split: str | None = None
    boxes: Sequence[Box] = ()


def read(
    spec: str, split: str, images: str | None, boxes: str | None, refs: str | None
) -> tuple[list[Referring], str | None]:
    """The expressions of a split and its name; ``images`` as in `formats.captions.read`.

    Args:
        boxes: file of the boxes to choose from; refs: of what is meant. None: not wanted.

    Raises:
        RequestError: file and entry of a mistake.
    """
    files, name = json_files.files(spec, split)
    choices = _choices(boxes)
    meant = _meant(refs)
    phrases = []
    for file in files:
        for entry, where in json_files.entries(file):
            if meant is not None and "bbox" not in entry and "ref_id" in entry:
                key = json_files.number(entry, "ref_id", where)
                if key not in meant:
                    raise RequestError(f"{where}: ref_id {key} is not in {refs}")
                entry = {**meant[key], **entry}
            image = json_files.image(entry, where, images)
            image_id = _image_id(entry, image, where)
            box = _box(entry["bbox"], where) if "bbox" in entry else None
            if box is not None and choices is not None and image_id not in choices:
                raise RequestError(f"{where}: no boxes of image {image_id} in {boxes}")
            phrases.append(
                Referring(
                    image,
                    json_files.text(entry, "text", where),
                    image_id,
                    where,
                    box,
                    json_files.text(entry, "split", where) if "split" in entry else None,
                    choices[image_id] if choices is not None and image_id in choices else (),
                )
            )
    if not phrases:
        raise RequestError(f"{files[0]}: no entries")
    return phrases, name


def _choices(path: str | None) -> dict[str, list[Box]] | None:
    if path is None:
        return None
    content = json_files.read(Path(path).expanduser())
    if not isinstance(content, dict):
        raise RequestError(f"{path}: expected an object of lists of boxes by image_id")
    boxes_by_key = {}
    for key, boxes in content.items():
        if not isinstance(boxes, list) or not boxes:
            raise RequestError(f"{path}, {key}: expected a list of boxes")
        boxes_by_key[key] = [_box(box, f"{path}, {key}, box {i}") for i, box in enumerate(boxes, 1)]
    return boxes_by_key


def _meant(path: str | None) -> dict[str, Mapping[str, Any]] | None:
    if path is None:
        return None
    entries = json_files.entries(Path(path).expanduser())
    entries_by_key: dict[str, Mapping[str, Any]] = {}
    for entry, where in entries:
        key = json_files.number(entry, "ref_id", where)
        if entries_by_key.setdefault(key, entry) != entry:
            raise RequestError(f"{where}: ref_id {key} comes twice and means two things; keep one")
    return entries_by_key


def _image_id(entry: Mapping[str, Any], image: str, where: str) -> str:
    if "image_id" in entry:
        return json_files.number(entry, "image_id", where)
    digits = re.findall(r"\d+", Path(image).stem)
    return str(int(digits[-1])) if digits else Path(image).stem


def _box(value: Any, where: str) -> Box:
    numbers = value[:4] if isinstance(value, list) else []
    good = len(numbers) == 4 and all(
        isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers
    )
    if not good or numbers[2] <= 0 or numbers[3] <= 0:
        raise RequestError(f"{where}: no box [x, y, width, height]: {value!r:.60}")
    return tuple(float(n) for n in numbers)  # type: ignore[return-value]
