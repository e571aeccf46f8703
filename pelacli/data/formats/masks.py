"""Images with a picture of class numbers each: folders of mask PNGs, and hub datasets with them.

Read are ``images/SPLIT/…`` beside ``annotations/SPLIT/…`` (ADE20K), ``SPLIT/images`` beside
``SPLIT/masks``, and the same without a level of splits. A mask is called as its image is, but for
the suffix, and holds one class number per pixel: grey, palette, or 16 bits. ``classes.txt`` at the
top, a name a line, says which classes there are.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pelacli.data.hub import open_split
from pelacli.data.splits import choose_split
from pelacli.errors import RequestError

IMAGES = ("images", "image", "img")
MASKS = ("annotations", "masks", "labels", "mask", "annotation", "segmentation")
_IMAGE_FILES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_MASK_FILES = (".png", ".bmp", ".tif", ".tiff")
_PLAIN = {"1", "L", "P", "I", "I;16", "I;16B", "I;16L"}  # Pillow's modes of one whole number


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
    image: str
    mask: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self.rows[int(index)]
        return _undecoded(row[self.image]), _undecoded(row[self.mask])


def is_masks(spec: str) -> bool:
    """Whether a folder is laid out as images and masks."""
    root = Path(spec).expanduser()
    return root.is_dir() and any(
        _child(folder, IMAGES) for folder in [root, *root.iterdir()] if folder.is_dir()
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
    names = sorted(_below(images, _IMAGE_FILES))
    if not names:
        raise RequestError(f"{images}: no images in it or below")
    if images_only:
        return Files([str(images / one) for one in names], [""] * len(names)), name, None
    if masks is None:
        raise RequestError(
            f"{spec}: no folder of masks beside {images}; call it one of {', '.join(MASKS[:3])}"
        )
    mask_of = {one.with_suffix(""): one for one in _below(masks, _MASK_FILES)}
    for one in names:
        if one.with_suffix("") not in mask_of:
            raise RequestError(
                f"{images / one}: has no mask {masks / one.with_suffix('.png')}; add it, or take "
                "the image out"
            )
    pairs = [(str(images / one), str(masks / mask_of[one.with_suffix("")])) for one in names]
    return Files([i for i, _ in pairs], [m for _, m in pairs]), name, _class_names(root)


def read_mask(
    raw: Any,
    where: str,
    *,
    size: tuple[int, int],
    classes: int,
    ignore: int,
    reduce: bool,
) -> Tensor:
    """The class of each pixel, [height, width], int64.

    Args:
        raw: a path, bytes, an array or a Pillow image.
        where: what to call it in errors, unless it is a path.
        size: (height, width) of its image.
        classes: how many there are; any other number but ``ignore`` is an error.
        ignore: the number of pixels that don't count.
        reduce: 0 is no class but "other", which becomes ``ignore``; 1 becomes class 0, and so on.

    Raises:
        RequestError: unreadable, of another size than its image, or with a number that is no class.
    """
    from PIL import Image

    where = raw if isinstance(raw, str) else f"{where} (mask)"
    try:
        if isinstance(raw, np.ndarray):
            raw = Image.fromarray(raw)
        elif not isinstance(raw, Image.Image):
            raw = Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw)
        numbers = np.array(raw).astype(np.int64)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError …
        raise RequestError(f"{where}: not a readable mask ({error}): mend or remove it") from None
    if raw.mode not in _PLAIN:
        raise RequestError(
            f"{where}: is a picture of mode {raw.mode}; a mask has one class number per pixel "
            "(grey or palette)"
        )
    if numbers.shape != size:
        (height, width), (tall, wide) = size, numbers.shape
        raise RequestError(f"{where}: is {wide}×{tall} px, and its image {width}×{height}")
    mask = torch.from_numpy(numbers)
    if reduce:
        mask = torch.where((mask == 0) | (mask == ignore), ignore, mask - 1)
    outside = mask[(mask != ignore) & ((mask < 0) | (mask >= classes))]
    if len(outside):
        worst = int(outside.max()) + reduce
        last = classes - 1 + reduce
        hint = "" if reduce else "; where 0 means other, set task_args.reduce_labels = true"
        raise RequestError(
            f"{where}: has the label {worst}, outside the {classes} classes "
            f"({int(reduce)} to {last}){hint}"
        )
    return mask


def _folders(root: Path, split: str, spec: str) -> tuple[Path, Path | None, str | None]:
    """(folder of images, folder of masks, name of the split) of one of the layouts."""
    images, masks = _child(root, IMAGES), _child(root, MASKS)
    if images is not None:
        parts = [d.name for d in sorted(images.iterdir()) if d.is_dir()]
        if not parts:
            return images, masks, None
        name = choose_split(split, parts, spec)
        beside = masks / name if masks is not None and (masks / name).is_dir() else None
        return images / name, beside, name
    parts = [d.name for d in sorted(root.iterdir()) if d.is_dir() and _child(d, IMAGES)]
    if not parts:
        raise RequestError(
            f"{spec}: is not laid out as images/SPLIT and annotations/SPLIT, nor as SPLIT/images "
            "and SPLIT/masks"
        )
    name = choose_split(split, parts, spec)
    folder = _child(root / name, IMAGES)
    assert folder is not None
    return folder, _child(root / name, MASKS), name


def _child(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _below(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    wanted = set(suffixes)
    return [
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.suffix.lower() in wanted and not path.name.startswith(".")
    ]


def _class_names(root: Path) -> list[str] | None:
    file = root / "classes.txt"
    if not file.is_file():
        return None
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file}: cannot be read as UTF-8 text ({error})") from None
    names = [line.strip() for line in text.splitlines()]
    names = [name for name in names if name]
    if not names:
        raise RequestError(f"{file}: has no class names; write one a line")
    return names


def _hub(spec: str, split: str) -> tuple[Rows, str, None]:
    import datasets

    rows, name = open_split(spec, split)
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
    return Rows(rows, image, mask), name, None


def _undecoded(value: Any) -> Any:
    return (value["bytes"] or value["path"]) if isinstance(value, dict) else value
