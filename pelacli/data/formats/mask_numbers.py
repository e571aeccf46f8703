"""A picture of class numbers: read, and checked against its image and the classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pelacli.data.decoding import load, upright
from pelacli.errors import RequestError

_PLAIN = {"1", "L", "P", "I", "I;16", "I;16B", "I;16L"}  # Pillow's modes of one whole number


def open_mask(raw: Any, where: str) -> tuple[Any, str]:
    """(a Pillow image of numbers, the right way up; its name in errors).

    Args:
        raw: a path, bytes, an array or a Pillow image.
        where: what to call it in errors, unless it is a path.

    Raises:
        RequestError: unreadable, or a picture of colours.
    """
    where = str(raw) if isinstance(raw, str | Path) else f"{where} (mask)"
    picture = upright(load(raw, where, "mask"))
    if picture.mode not in _PLAIN:
        raise RequestError(
            f"{where}: is a picture of mode {picture.mode}; a mask has one class number per pixel "
            "(grey or palette): write the number of each colour's class in its place"
        )
    return picture, where


def class_numbers(
    picture: Any, where: str, *, size: tuple[int, int], classes: int, ignore: int, reduce: bool
) -> Tensor:
    """The class of each pixel, [height, width], int64.

    Args:
        picture, where: of `open_mask`.
        size: (height, width) of its image.
        classes: how many there are; any other number but ``ignore`` is an error.
        ignore: the number of pixels that don't count.
        reduce: 0 is no class but "other", which becomes ``ignore``; 1 becomes class 0, and so on.

    Raises:
        RequestError: of another size than its image, or with a number that is no class.
    """
    numbers = np.array(picture).astype(np.int64)
    if numbers.shape != size:
        (height, width), (tall, wide) = size, numbers.shape
        raise RequestError(
            f"{where}: is {wide}×{tall} px, and its image {width}×{height}; save both at one size "
            "(a mask without smoothing: by nearest neighbour)"
        )
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


def refuse_single_class(
    source: Any, spec: str, *, ignore: int, reduce: bool, training: bool
) -> None:
    """Refuse masks in which at most one class counts, as in masks of 0 and 255 where 255 stands for
    what does not count: a model would learn to answer it everywhere, and be right.

    Masks are read until two classes have been seen, which are mostly in the first.

    Args:
        source: (image, mask) by index.
        training: refuse also where no pixel is left out; in evaluation there may be such a split.
    """
    seen: set[int] = set()
    uncounted = {ignore, 0} if reduce else {ignore}
    for index in range(len(source)):
        picture, _ = open_mask(source[index][1], f"{spec}, sample {index}")
        seen |= set(np.unique(np.array(picture)).astype(np.int64).tolist())
        if len(seen - uncounted) > 1:
            return
    counted = seen - uncounted
    only = f"only class {counted.pop()}" if counted else "no class"
    left_out = sorted(seen & uncounted)
    if left_out:
        value = left_out[-1]
        setting = "reduce_labels" if reduce and value == 0 else "ignore_index"
        raise RequestError(
            f"{spec}: {only} counts in its {len(source)} masks, for their {value} stands for "
            f"pixels that don't count (task_args.{setting}): where {value} is a class, write that "
            "class's number (0, 1, …) in its place"
        )
    if training:
        raise RequestError(
            f"{spec}: {only} is in its {len(source)} masks, so there is nothing to learn; add "
            "masks of others"
        )
