"""Find artefacts on disk: the one that a path stands for, and all that lie below a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pelacli.errors import RequestError
from pelacli.manifest import digests, document
from pelacli.recipe.aliases import ALIASES
from pelacli.recipe.layout import FOLDERS
from pelacli.recipe.step import Opening, Step


def latest(path: Path) -> Path | None:
    """The artefact a path stands for: itself, or the last step of a run directory; else None."""
    for candidate in [path, *(path / name for name in reversed(FOLDERS.values()))]:
        if document.is_artefact(candidate):
            return candidate
    return None


def artefacts(root: Path) -> list[Path]:
    """All artefacts at or below a directory, two levels deep, in order of path and step."""
    folders = {
        path.parent
        for pattern in ("", "*/", "*/*/")
        for path in root.glob(f"{pattern}{document.FILE}")
        if not path.parent.name.startswith(".")
    }
    order = {name: number for number, name in enumerate(FOLDERS.values())}
    return sorted(folders, key=lambda p: (str(p.parent), order.get(p.name, -1), p.name))


def require(ref: str, needed_by: str) -> str:
    """``ref`` as it is.

    Args:
        ref: a step's source. It may be the folder of an earlier step.
        needed_by: the step, or what the message calls the model.

    Raises:
        RequestError: the earlier step has not run yet.
    """
    path = Path(ref)
    if path.name in FOLDERS.values() and not path.is_dir():  # a user's model may be called "dense"
        raise RequestError(
            f"{path}: {needed_by} needs this artefact and it is not there; "
            "run the earlier steps first (`pela run` runs them all)"
        )
    return ref


def input_digest(step: Step[Any]) -> str | None:
    """What identifies the weights that a step would read now, as
    `pelacli.artefact.loading.input_digest` gives it of an opened model.

    Returns:
        None where only opening the model could tell: a hub id, a timm name, random weights.

    Raises:
        OSError: a file of the weights can't be read.
    """
    path = latest(Path(step.source))
    if path is not None:
        return digests.weights_digest(path)
    weights = step.opening.weights
    if weights == "random":
        return None
    pretrained = weights == "pretrained"
    plain = Path(ALIASES.get(step.source, step.source) if pretrained else weights)
    return digests.digest_files(digests.plain_weight_files(plain)) or None


def how_to_open(ref: str, opening: Opening) -> dict[str, Any]:
    """Keyword arguments for opening ``ref``: the recipe's; none for an artefact."""
    return {} if latest(Path(ref)) is not None else dict(vars(opening))
