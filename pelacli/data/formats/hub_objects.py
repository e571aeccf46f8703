"""Images with boxes around their objects: hub datasets with an ``objects`` column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pelacli.data.formats.coco import area_of, corners, is_crowd
from pelacli.data.formats.objects import Objects
from pelacli.data.hub import image_of, open_split, row_name
from pelacli.errors import RequestError


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
        return row_name(self.spec, index)

    def __getitem__(self, index: int) -> tuple[Any, int, Objects]:
        row = self.rows[int(index)]
        raw = image_of(row, self.image, self.name(index))
        objects = []
        for number, entry in enumerate(_entries(row[self.column])):
            where = f"{self.name(index)}, object {number}"
            label = entry[self.category]
            if not isinstance(label, int) or not 0 <= label < len(self.classes):
                raise RequestError(
                    f"{where}: category {label!r} is not 0 to {len(self.classes) - 1}"
                )
            box = corners(entry[self.box], where, row.get("width"), row.get("height"), self.form)
            if box is not None:
                objects.append((box, label, is_crowd(entry, where), area_of(entry, box, where)))
        return raw, int(index), Objects.of(objects, row.get("width"), row.get("height"))


def find(spec: str, split: str, form: str) -> tuple[Rows, list[str], str]:
    """(samples, class names, the split's name) of ``hfds/…`` with an ``objects`` column of
    ``bbox`` and ``category`` (or ``label``), whose class names are known or numbers.

    Raises:
        RequestError: it cannot be opened, or has no such columns.
    """
    rows, name = open_split(spec, split)
    source = rows_of(rows, spec, form)
    return source, source.classes, name


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
