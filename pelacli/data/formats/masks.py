"""Images with a picture of class numbers each: folders of mask PNGs, and hub datasets with them.

Read are ``images/SPLIT/…`` beside ``annotations/SPLIT/…`` (ADE20K), ``SPLIT/images`` beside
``SPLIT/masks``, and the same without a level of splits. A mask is called as its image is, but for
the suffix, and holds one class number per pixel: grey, palette, or 16 bits. ``classes.txt`` at the
top, a name a line, says which classes there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli.console import warn
from pelacli.data import image_files
from pelacli.data.hub import image_of, open_split, row_name
from pelacli.data.splits import choose_split
from pelacli.errors import RequestError
from pelacli.system import own_files

IMAGES = ("images", "image", "img")
MASKS = ("annotations", "masks", "labels", "mask", "annotation", "segmentation")
_MASK_FILES = {".png", ".bmp", ".tif", ".tiff", ".gif", ".pgm"}  # that keep numbers as they are


@dataclass
class Files:
    """Paths of images and of their masks, by index."""

    images: Sequence[str]
    masks: Sequence[str]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.masks[index]

    def name(self, index: int) -> str:
        return self.images[index]


@dataclass
class Rows:
    """Rows of a hub dataset with a column of images and one of masks."""

    rows: Any
    spec: str
    image: str
    mask: str

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return row_name(self.spec, index)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row, where = self.rows[int(index)], self.name(index)
        return image_of(row, self.image, where), image_of(row, self.mask, where)


def is_masks(spec: str) -> bool:
    """Whether a folder is laid out as images and masks."""
    root = Path(spec).expanduser()
    return root.is_dir() and any(
        _child(folder, IMAGES) for folder in [root, *image_files.folders(root)]
    )


def open_masks(
    spec: str, split: str, *, images_only: bool = False
) -> tuple[Files | Rows, str | None, list[str] | None]:
    """Open a split.

    Args:
        spec: a folder, or "hfds/…" (`pelacli.data.hub.open_split`).
        images_only: of a folder; its masks may be missing, and those given are empty.

    Returns:
        (source of (image, mask), the split's own name or None, names of the classes or None).

    Raises:
        RequestError: no such layout or split; an image without a mask, named.
    """
    if spec.startswith("hfds/"):
        return _hub(spec, split)
    root = Path(spec).expanduser()
    if not root.is_dir():
        raise RequestError(f"{spec}: no such folder")
    images, masks, name = _folders(root, split, spec)
    files = image_files.below(images)
    if not files.images:
        raise image_files.no_images(images, files.others)
    image_files.tell(images, files.others)
    names = sorted(Path(file).relative_to(images) for file in files.images)
    if images_only:
        return Files([str(images / one) for one in names], [""] * len(names)), name, None
    if masks is None:
        raise RequestError(
            f"{spec}: no folder of masks beside {images}; call it one of {', '.join(MASKS[:3])}"
        )
    pairs = _pairs(images, names, masks)
    return Files([i for i, _ in pairs], [m for _, m in pairs]), name, _class_names(root)


def _pairs(images: Path, names: Sequence[Path], masks: Path) -> list[tuple[str, str]]:
    """(image, mask) paths of the same name but for the ending.

    Raises:
        RequestError: an image without a mask, or two files of one name.
    """
    given = [Path(file).relative_to(masks) for file in image_files.below(masks).images]
    mask_of = _by_name(masks, [one for one in given if one.suffix.lower() in _MASK_FILES])
    image_of = _by_name(images, names)
    for name, one in image_of.items():
        if name not in mask_of:
            raise RequestError(
                f"{images / one}: has no mask {masks / name}.png; {_remedy(name, masks, given)}"
            )
    if extra := sorted(set(mask_of) - set(image_of)):
        first = masks / mask_of[extra[0]]
        warn(f"{masks}: {len(extra)} masks have no image and are left out ({first.name}, …)")
    return [(str(images / one), str(masks / mask_of[name])) for name, one in image_of.items()]


def _by_name(folder: Path, files: Iterable[Path]) -> dict[Path, Path]:
    """Files by their names without ending, each of which may come once."""
    by_name: dict[Path, Path] = {}
    for one in files:
        other = by_name.setdefault(one.with_suffix(""), one)
        if other != one:
            raise RequestError(
                f"{folder / one}: has the name of {other.name}, so their masks can't be told "
                "apart; rename one, and its mask"
            )
    return by_name


def _remedy(name: Path, masks: Path, given: Sequence[Path]) -> str:
    """What to do for an image without a mask, of the files that there are."""
    for one in given:
        if one.with_suffix("") == name:
            return f"{one.name} can't be one: its format changes numbers; save it as PNG"
    for one in given:
        if one.stem == name.name or re.match(rf"{re.escape(name.name)}[^0-9A-Za-z]", one.stem):
            return f"if {masks / one} is it, give it that name"
    return "add it, or take the image out"


def _folders(root: Path, split: str, spec: str) -> tuple[Path, Path | None, str | None]:
    """(folder of images, folder of masks, name of the split) of one of the layouts."""
    images, masks = _child(root, IMAGES), _child(root, MASKS)
    if images is not None:
        parts = [folder.name for folder in image_files.folders(images)]
        if not parts:
            return images, masks, None
        name = choose_split(split, parts, spec)
        beside = None if masks is None else _child(masks, (name.casefold(),))
        return images / name, beside, name
    parts = [folder.name for folder in image_files.folders(root) if _child(folder, IMAGES)]
    if not parts:
        raise RequestError(
            f"{spec}: is not laid out as images/SPLIT and annotations/SPLIT, nor as SPLIT/images "
            "and SPLIT/masks"
        )
    name = choose_split(split, parts, spec)
    folder = _child(root / name, IMAGES)
    assert folder is not None
    return folder, _child(root / name, MASKS), name


def _child(folder: Path, names: Sequence[str]) -> Path | None:
    """The first folder in a folder of one of the names, whose case does not count."""
    present = {child.name.casefold(): child for child in reversed(image_files.folders(folder))}
    return next((present[name] for name in names if name in present), None)


def _class_names(root: Path) -> list[str] | None:
    file = root / "classes.txt"
    if not file.is_file():
        return None
    try:
        own_files.check_ends(file)
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file}: cannot be read as UTF-8 text ({error})") from None
    names = [line.strip() for line in text.splitlines()]
    names = [name for name in names if name]
    if not names:
        raise RequestError(f"{file}: has no class names; write one a line")
    return names


def _hub(spec: str, split: str) -> tuple[Rows, str, None]:
    rows, name = open_split(spec, split)  # says so where the package is missing
    import datasets

    pictures = [c for c, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    mask = next((c for c in (*MASKS, "label", "semantic_mask") if c in pictures), None)
    image = next((c for c in pictures if c != mask), None)
    if mask is None or image is None:
        raise RequestError(
            f"{spec}: wants a column of images and one of masks, called {', '.join(MASKS[:3])}; "
            f"its pictures are {', '.join(pictures) or 'none'}"
        )
    for column in (image, mask):  # decoded where an unreadable one gets its error
        rows = rows.cast_column(column, datasets.Image(decode=False))
    return Rows(rows, spec, image, mask), name, None
