"""Rows of a Hugging Face dataset (``hfds/…``) that have an image and something said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pelacli.data.hub import image_of, open_split, row_name
from pelacli.errors import RequestError


@dataclass(frozen=True)
class HubImage:
    """An image that is read when it is wanted."""

    rows: Any
    index: int
    column: str
    where: str

    def read(self) -> Any:
        """Bytes, or a path.

        Raises:
            RequestError: the row has no image.
        """
        return image_of(self.rows[self.index], self.column, self.where)


def rows(
    spec: str, split: str, wanted: Mapping[str, Sequence[str]]
) -> tuple[list[tuple[HubImage, dict[str, Any], str]], str]:
    """The rows of a split. Numbers of classes become the names that the dataset declares for them,
    since each dataset has an order of its own; −1, its word for none, becomes None.

    Args:
        wanted: field → names that its column may have, the likeliest first.

    Returns:
        ((image, the fields that there are, the row in words) of each row, the split's name).

    Raises:
        RequestError: the dataset can't be opened, or has no column of images.
    """
    table, name = open_split(spec, split)  # says so where the package is missing
    import datasets

    features = table.features
    pictures = [c for c, feature in features.items() if isinstance(feature, datasets.Image)]
    if not pictures:
        raise RequestError(f"{spec}: no column of images in {', '.join(features)}")
    columns = {
        field: column
        for field, names in wanted.items()
        if (column := next((n for n in names if n in features), None)) is not None
    }
    table = table.cast_column(pictures[0], datasets.Image(decode=False))
    words = table.select_columns(list(columns.values()))
    result = []
    for index in range(len(table)):
        row = words[index] if columns else {}
        fields = {field: _named(row[column], features[column]) for field, column in columns.items()}
        where = row_name(spec, index)
        result.append((HubImage(table, index, pictures[0], where), fields, where))
    return result, name


def _named(value: Any, feature: Any) -> Any:
    names = getattr(feature, "names", None)  # of a ClassLabel
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None
