"""Which files below a folder are images.

What editors, archives and file systems leave behind is passed over without a word. All other files
that are not read are counted by their endings, so that `tell` can say so.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pelacli.console import warn_once
from pelacli.errors import RequestError

# Pillow knows these by their first bytes, but needs other programs or libraries to read them.
_NOT_BY_PILLOW = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# Pictures that Pillow doesn't read; a folder of them was meant to be read.
UNREAD = {
    ".heic", ".heif", ".hif", ".jxl", ".svg", ".svgz", ".dng", ".cr2", ".cr3", ".nef", ".arw",
    ".orf", ".raf", ".rw2", ".dcm", ".npy", ".npz", ".exr", ".hdr", ".mat", ".eps", ".ps", ".pdf",
    ".psb", ".xcf", ".mp4", ".mov", ".avi", ".mkv", ".webm",
}  # fmt: skip
_LEFT_BEHIND = {
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
    "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
}  # fmt: skip
_SOME = 6  # endings that a message lists


@dataclass
class Files:
    """Files below a folder.

    Attributes:
        images: paths that begin with the folder's, in the order in which timm numbers them (2
            before 10).
        others: how many files are not read, by ending.
        directories: the folders they lie in, without links.
    """

    images: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    directories: set[str] = field(default_factory=set)


@cache
def endings() -> frozenset[str]:
    """Of images that Pillow reads, in lower case."""
    from PIL import Image

    Image.init()
    read = {
        ending
        for ending, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NOT_BY_PILLOW
    }
    return frozenset(read | {".mpo"})  # a JPEG with further pictures


def is_left_behind(name: str) -> bool:
    """Whether an editor, an archive or a file system left a file or folder of this name."""
    return name.startswith(".") or name.casefold() in _LEFT_BEHIND


def folders(root: Path) -> list[Path]:
    """The folders in a folder, but for what was left behind, by name."""
    return sorted(d for d in root.iterdir() if d.is_dir() and not is_left_behind(d.name))


def below(root: Path, *, deep: bool = True) -> Files:
    """The files below a folder.

    Args:
        deep: False: only those directly in it.
    """
    files = Files()
    for directory, path in _walk(root, deep):
        ending = os.path.splitext(path)[1].lower()
        if ending in endings():
            files.images.append(path)
            files.directories.add(directory)
        else:
            files.others[ending] += 1
    files.images.sort(key=lambda path: (natural(path), path))
    return files


def any_below(root: Path, *, deep: bool = True) -> bool:
    """Whether there is an image below a folder."""
    return any(os.path.splitext(path)[1].lower() in endings() for _, path in _walk(root, deep))


def natural(name: str) -> list[int | str]:
    """The order in which timm numbers classes: 2 before 10."""
    from timm.utils.misc import natural_key

    return list(natural_key(name))


def counted(others: Counter[str]) -> str:
    """Files that are not read, in words: "12 .heic, 1 .txt"."""
    most = others.most_common(_SOME)
    words = [f"{count} {ending or 'without an ending'}" for ending, count in most]
    rest = others.total() - sum(count for _, count in most)
    return ", ".join([*words, f"{rest} others"] if rest else words)


def tell(root: Path | str, others: Counter[str]) -> None:
    """Say which files below a folder are not read."""
    if others:
        subject = "1 file is" if others.total() == 1 else f"{others.total()} files are"
        message = f"{root}: {subject} left out, by the ending no image that Pillow reads"
        warn_once(message, f"{message}: {counted(others)}")


def no_images(root: Path, others: Counter[str]) -> RequestError:
    """The error for a folder without images."""
    if not others:
        return RequestError(f"{root}: no images in it or below")
    return RequestError(
        f"{root}: no images that Pillow reads in it or below, but {counted(others)}; convert them "
        "to JPEG or PNG"
    )


def _walk(root: Path, deep: bool) -> Iterator[tuple[str, str]]:
    """(folder without links, path) of files. Links to folders are followed, but not up, and never
    twice to the same one."""
    above = {str(parent) for parent in Path(os.path.realpath(root)).parents}
    seen: set[str] = set()
    for directory, names, files in os.walk(root, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen or real in above:
            names.clear()
            continue
        seen.add(real)
        names[:] = _kept(names) if deep else []
        for name in _kept(files):
            yield real, os.path.join(directory, name)


def _kept(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not is_left_behind(name))
