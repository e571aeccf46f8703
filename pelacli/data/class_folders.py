"""Folders of images: which folder is a split, and which a class.

A tree that can be read in two ways is refused with what to give instead: splits taken for classes
would be learned without a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pelacli.console import warn_once
from pelacli.data import image_files
from pelacli.data.splits import SPLITS, choose_split
from pelacli.data.unknown import unknown_dataset
from pelacli.errors import RequestError

_SPLIT_NAMES = {name for names in SPLITS for name in names}
_SOME = 4  # names that a message lists


def read_labelled(spec: str, split: str) -> tuple[list[str], list[int], str | None, list[str]]:
    """The images of a split's class folders.

    Classes are numbered by the folders of the training split where there is one, so that all splits
    agree.

    Returns:
        (paths, their classes' numbers, the split's own name or None, the names of the classes).

    Raises:
        RequestError: there are none, or the folders are not laid out as split and class.
    """
    root, name = split_folder(spec, split)
    training, _ = split_folder(spec, None)
    classes = _class_names(training)
    if root != training:
        _refuse_unknown(_class_names(root), classes, root)
    others = image_files.below(root, deep=False)
    files: list[str] = []
    labels: list[int] = []
    class_of: dict[str, str] = {}
    for label, folder in enumerate(classes):
        in_class = image_files.below(root / folder)
        for directory in in_class.directories:
            if class_of.setdefault(directory, folder) != folder:
                raise RequestError(
                    f"{root}: {class_of[directory]} and {folder} are, by a link, one folder; give "
                    "each class images of its own"
                )
        files += in_class.images
        labels += [label] * len(in_class.images)
        others.others += in_class.others
    image_files.tell(root, others.others)
    if others.images:
        message = f"{root}: {len(others.images)} images lie outside of any class folder"
        warn_once(message, f"{message} and are left out ({Path(others.images[0]).name}, …)")
    return files, labels, name, classes


def read_unlabelled(spec: str, split: str) -> tuple[list[str], str | None]:
    """(paths of the images at any depth below a split's folder, the split's own name or None).

    Raises:
        RequestError: there are none.
    """
    root, name = split_folder(spec, split)
    files = image_files.below(root)
    if not files.images:
        raise image_files.no_images(root, files.others)
    image_files.tell(root, files.others)
    return files.images, name


def split_folder(spec: str, split: str | None) -> tuple[Path, str | None]:
    """(the folder of a split, its own name); (the folder itself, None) where it has no splits.

    Args:
        split: None: training, or the first there is.

    Raises:
        RequestError: no such folder or split.
    """
    root = Path(spec).expanduser()
    if root.is_file():
        raise RequestError(f"{spec}: is a file; images are read from folders")
    if not root.is_dir():
        raise unknown_dataset(spec)
    present = {folder.name.casefold(): folder.name for folder in image_files.folders(root)}
    names = [present[name] for family in SPLITS for name in family if name in present]
    if split is not None and split not in names and (root / split).is_dir():
        names.append(split)
    if not names:
        return root, None
    name = names[0] if split is None else choose_split(split, names, spec)
    return root / name, name


# Classes -----------------------------------------------------------------------------------------


def _class_names(root: Path) -> list[str]:
    """Names of the class folders, in timm's order.

    Raises:
        RequestError: there are none, or the folders are something else.
    """
    folders = image_files.folders(root)
    named = [folder for folder in folders if image_files.any_below(folder)]
    if not named:
        raise _no_classes(root)
    _refuse_splits(root, named)
    _refuse_wrapper(root, named)
    without = [folder for folder in folders if folder not in named]
    for folder in without:
        others = image_files.below(folder).others
        if others.keys() & image_files.UNREAD:
            raise image_files.no_images(folder, others)
    if without:
        message = f"{root}: folders without images are no classes: {_listed(without)}"
        warn_once(message, message)
    names = sorted((folder.name for folder in named), key=image_files.natural)
    _refuse_names(names, root)
    return names


def _no_classes(root: Path) -> RequestError:
    direct = image_files.below(root, deep=False)
    if not direct.images:
        others: Counter[str] = image_files.below(root).others
        if others.keys() & image_files.UNREAD:
            return image_files.no_images(root, others)
        return RequestError(f"{root}: no class folders with images in it")
    remedy = "put them into a folder for each class"
    beside = [d for d in image_files.folders(root.parent) if d.name.casefold() not in _SPLIT_NAMES]
    beside = [folder for folder in beside if image_files.any_below(folder, deep=False)]
    if any((root / f"metadata.{ending}").is_file() for ending in ("csv", "jsonl", "parquet")):
        remedy = "as its metadata names their classes, put hfds/ before the dataset's path"
    elif root.name.casefold() in _SPLIT_NAMES and beside:
        remedy = (
            f"{root.name} is read as a split; if it is a class, as {_listed(beside)} may be, move "
            f"all of them into {root.parent / 'train'}"
        )
    return RequestError(
        f"{root}: no class folders with images in it (its images lie outside of any class folder): "
        f"{remedy}"
    )


def _refuse_splits(root: Path, named: Sequence[Path]) -> None:
    """Refuse folders that are splits by another name, and splits inside of class folders."""
    for folder in named:
        if image_files.any_below(folder, deep=False):
            continue
        inner = [d for d in image_files.folders(folder) if image_files.any_below(d)]
        splits = [d for d in inner if d.name.casefold() in _SPLIT_NAMES]
        if len(named) > 1 and splits:
            raise RequestError(
                f"{splits[0]}: a split inside of a class folder; splits come first, as in "
                f"{root / splits[0].name / folder.name}"
            )
        words = set(re.split(r"[^a-z]+", folder.name.casefold()))
        family = next((names for names in SPLITS if words & set(names)), None)
        if family:
            raise RequestError(
                f"{folder}: looks like a split, with {_listed(inner)} in it; call it "
                f"{family[0]}, or give {folder} itself"
            )


def _refuse_wrapper(root: Path, named: Sequence[Path]) -> None:
    """Refuse a folder whose only folder holds the splits or classes."""
    if len(named) > 1 or image_files.any_below(named[0], deep=False):
        return
    inner = [d for d in image_files.folders(named[0]) if image_files.any_below(d)]
    raise RequestError(
        f"{root}: the classes lie one level too deep: its only folder of images is "
        f"{named[0].name}, which holds {_listed(inner)}; give {named[0]}, or move these up"
    )


def _refuse_names(names: Sequence[str], root: Path) -> None:
    """Refuse names that files of results can't hold, and two that a user would take for one."""
    spelling: dict[str, str] = {}
    for name in names:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise RequestError(f"{root}/{shown}: the name of a class is not UTF-8; rename it")
        other = spelling.setdefault(_plain(name), name)
        if other != name:
            raise RequestError(
                f"{root}: {other!r} and {name!r} are one name, spelt in two ways; merge the "
                "folders, or rename one"
            )


def _refuse_unknown(names: Sequence[str], classes: Sequence[str], root: Path) -> None:
    """Refuse a class that the training split has not."""
    for name in names:
        if name not in classes:
            like = next((known for known in classes if _plain(known) == _plain(name)), None)
            hint = f", but {like!r}: rename one" if like else ""
            raise RequestError(f"{root / name}: the training split has no such class{hint}")


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


def _listed(folders: Sequence[Path]) -> str:
    names = [folder.name for folder in folders]
    return ", ".join(names[:_SOME]) + (", …" if len(names) > _SOME else "")
