"""Pictures, from whatever a source gives to 8 bits a channel, the right way up. Every reader of
images calls `decode`, so that all of them agree.

- A camera's EXIF orientation is applied, as viewers and annotation tools do.
- What is transparent becomes white, as in transformers' `convert_to_rgb`; Pillow's own conversion
  shows what lies below, which is mostly black.
- 16 bits are shares of 65535; Pillow's own conversion clips them at 255, so all but the darkest
  became white. Numbers whose white nobody knows are refused.
- Of several frames or pages the first is taken, which is said once.
"""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pelacli.console import warn_once
from pelacli.errors import RequestError
from pelacli.messages import one_line
from pelacli.system import own_files

# Longer side by shorter side. Scaled to a model's size, a longer strip takes gigabytes.
_LONGEST = 200
# Formats whose further frames are content. Those of others are previews, sizes or layers.
_FRAMES = {"GIF", "WEBP", "PNG", "TIFF", "AVIF"}
_WIDE = {"I;16", "I;16B", "I;16L", "I;16N"}  # Pillow's modes of 16 bits


def decode(raw: Any, mode: str, where: str, size: tuple[float, float] | None = None) -> Any:
    """A Pillow image of the mode.

    Args:
        raw: a path, bytes, an array or a Pillow image.
        mode: "RGB" or "L".
        where: names it in errors.
        size: (width, height) that its annotation is of. Where only the picture as it is stored has
            them, not the one turned by its EXIF orientation, it is left as it is stored.

    Raises:
        RequestError: one line that names it: unreadable, too long and thin, transparent
            throughout, or of numbers whose white is not known.
    """
    image = load(raw, where)
    turned = upright(image)
    if not turned.size != image.size == size:
        image = turned
    if max(image.size) > _LONGEST * min(image.size):
        raise RequestError(
            f"{where}: is {image.width}×{image.height} px, a strip more than {_LONGEST} times as "
            "long as wide; cut it into pieces, or remove it"
        )
    try:
        return _eight_bits(image, where).convert(mode)
    except (ValueError, OSError, MemoryError) as error:
        raise _unreadable(error, where, "image") from None


def load(raw: Any, where: str, what: str = "image") -> Any:
    """A Pillow image as it is stored, its pixels read.

    Args:
        raw, where: as for `decode`; or the error of a reader that could not give an image.
        what: it is called in errors.

    Raises:
        RequestError: it can't be read.
    """
    from PIL import Image

    if isinstance(raw, RequestError):
        raise raw
    try:
        if isinstance(raw, np.ndarray):
            return Image.fromarray(raw)
        if isinstance(raw, Image.Image):
            raw.load()
            return raw
        if isinstance(raw, str | Path):
            own_files.check_ends(Path(raw))
        image = Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw)
        if image.format in _FRAMES and getattr(image, "is_animated", False):
            warn_once(
                "frames",
                f"{where}: has several frames or pages; of such files the first one is taken",
            )
        image.load()
        return image
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError …
        raise _unreadable(error, where, what, is_empty=_is_empty(raw)) from None


def _is_empty(raw: Any) -> bool:
    if isinstance(raw, bytes):
        return not raw
    return isinstance(raw, str | Path) and Path(raw).is_file() and Path(raw).stat().st_size == 0


def upright(image: Any) -> Any:
    """The image turned as its EXIF orientation says; the same where there is none."""
    from PIL import ExifTags, ImageOps

    try:
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # broken EXIF data say nothing
        return image
    if not is_turned:
        return image
    turned = image.copy()
    with suppress(Exception):  # the pixels are turned first; other EXIF data may be broken
        ImageOps.exif_transpose(turned, in_place=True)
    return turned


def _eight_bits(image: Any, where: str) -> Any:
    """The image with 8 bits a channel and without transparency."""
    from PIL import Image

    if image.mode in _WIDE or (image.mode == "I" and image.format == "PPM"):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "I":
        return Image.fromarray(_within(image, 255, where).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(np.round(_within(image, 1, where) * 255).astype(np.uint8))
    if image.mode == "LAB":
        return image.convert("RGB")
    if not image.has_transparency_data:
        return image
    seen = image.convert("RGBA")
    if seen.getchannel("A").getextrema()[1] == 0:
        raise RequestError(
            f"{where}: is transparent throughout; take out its alpha channel, or remove it"
        )
    white = Image.new("RGBA", seen.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, seen).convert("RGB")


def _within(image: Any, white: int, where: str) -> Any:
    """The numbers of an image of 32 bits, if they are at most ``white``."""
    values = np.asarray(image)
    if not (values.min() >= 0 and values.max() <= white):  # NaN is refused too
        kind = "fractions" if image.mode == "F" else "whole numbers"
        raise RequestError(
            f"{where}: its pixels are {kind} of 32 bits from {values.min():g} to "
            f"{values.max():g}, and it is not known which of them is white; such images are read "
            f"if they reach from 0 to {white}; else save them with 8 or 16 bits"
        )
    return values


def _unreadable(error: Exception, where: str, what: str, *, is_empty: bool = False) -> RequestError:
    from PIL import Image, UnidentifiedImageError

    remedy = "mend or remove it"
    if isinstance(error, UnidentifiedImageError) and is_empty:
        reason = "it is empty"
    elif isinstance(error, UnidentifiedImageError):
        reason = "no format that Pillow knows"
        remedy = "save it as PNG or JPEG, or remove it"
    elif isinstance(error, Image.DecompressionBombError | MemoryError):
        reason = one_line(error)
        remedy = "make it smaller, or cut it into pieces"
    else:
        reason = one_line(error)
    return RequestError(f"{where}: not a readable {what} ({reason}): {remedy}")
