"""What a user has put into an artefact's directory: it stays when the artefact is made anew."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from pelacli.errors import RequestError
from pelacli.manifest import digests, document, integrity
from pelacli.models import carried
from pelacli.system import own_files


def names(artefact: Path) -> list[str]:
    """The files and links below an artefact's directory that pela did not write, by relative name.

    Its manifest lists what pela wrote. One of an older pela, or a damaged one, lists nothing; there
    the names that pela gives or carries count as its own.
    """
    try:
        written = document.read(artefact).files
    except RequestError:
        written = None
    own = {document.FILE, *integrity.FREE, *(written or {})}
    return sorted(
        name
        for name in own_files.names_below(artefact)
        if name not in own and (written is not None or not _is_usual(name))
    )


def check(artefact: Path) -> None:
    """Refuse a directory in which a user's file would be taken for weights of the new artefact.

    Raises:
        RequestError: naming the file.
    """
    for name in names(artefact):
        if fnmatchcase(name, digests.WEIGHTS):
            raise RequestError(
                f"{artefact / name}: was not written by pela, and would be read as weights of the "
                "new artefact; move it, or choose another output"
            )


def keep(old: Path, new: Path, kept: Iterable[str]) -> None:
    """Put a user's files into the directory that is to take the old one's place, unless it has
    files of these names itself. The old directory has them still.

    Raises:
        OSError: the disk refuses.
    """
    for name in kept:
        target = new / name
        if os.path.lexists(target) or not _make_room(new, target.parent):
            continue
        try:
            os.link(old / name, target, follow_symlinks=False)
        except OSError:  # another disk is mounted there, or this one knows no second names
            shutil.copy2(old / name, target, follow_symlinks=False)


def _make_room(root: Path, folder: Path) -> bool:
    """Make a folder below the root; False where a file of the new artefact is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        return False
    return folder.resolve().is_relative_to(root.resolve())


def _is_usual(name: str) -> bool:
    """Whether pela writes files of this name into artefacts."""
    usual = ("config.json", "spectra.safetensors", f"{digests.WEIGHTS}*", *carried.PATTERNS)
    in_module = re.fullmatch(r"\d+_\w+/(config\.json|model\.safetensors)", name)
    return bool(in_module) or any(
        fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in usual
    )
