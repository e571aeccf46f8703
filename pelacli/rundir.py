"""A recipe's run directory: which step writes where, and reads what. No torch.

::

    runs/vit_base/
      dense/       the dense model, where the recipe trains one ([teacher])
      decompose/   the low-rank model
      pretrain/    … healed
      finetune/    … trained on the task
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pelacli import manifest
from pelacli.aliases import ALIASES
from pelacli.errors import RequestError
from pelacli.recipe import Recipe

# section of the recipe → folder of its artefact, in the order in which the steps run
FOLDERS = {
    "teacher": "dense",
    "decompose": "decompose",
    "pretrain": "pretrain",
    "finetune": "finetune",
}


def folder(recipe: Recipe, section: str) -> Path:
    """Where the step of this section writes its artefact."""
    return Path(recipe.output) / FOLDERS[section]


def workplace(output: Path) -> Path:
    """Where the training of an artefact keeps its checkpoints until the artefact is written."""
    return output.with_name(f"{output.name}.training")


def dense(recipe: Recipe) -> str:
    """The dense model of a recipe: the one it trains, else the one it names."""
    return str(folder(recipe, "teacher")) if recipe.teacher is not None else recipe.model


def source(recipe: Recipe, section: str) -> str:
    """What the step of this section starts from: the nearest earlier step that the recipe has."""
    if section in ("teacher", "decompose"):
        return recipe.model if section == "teacher" else dense(recipe)
    order = list(FOLDERS)
    for earlier in reversed(order[1 : order.index(section)]):
        if getattr(recipe, earlier) is not None:
            return str(folder(recipe, earlier))
    return dense(recipe)


def result(recipe: Recipe) -> str:
    """What the recipe ends with: the artefact of its last training or factorising step."""
    for section in reversed(FOLDERS):
        if getattr(recipe, section) is not None:
            return str(folder(recipe, section))
    return recipe.model


def latest(path: Path) -> Path | None:
    """The artefact a path stands for: itself, or the last step of a run directory; else None."""
    for candidate in [path, *(path / name for name in reversed(FOLDERS.values()))]:
        if manifest.is_artefact(candidate):
            return candidate
    return None


def artefacts(root: Path) -> list[Path]:
    """All artefacts at or below a directory, two levels deep, in order of path and step."""
    order = list(FOLDERS.values())
    found = [
        path.parent
        for pattern in ("", "*/", "*/*/")
        for path in root.glob(f"{pattern}{manifest.FILE}")
        if not path.parent.name.startswith(".")
    ]
    rank = {name: i for i, name in enumerate(order)}
    return sorted(set(found), key=lambda p: (str(p.parent), rank.get(p.name, -1), p.name))


def require(ref: str, wanted_by: str) -> str:
    """``ref`` again, if it is there where it must be: a step's input that another step writes."""
    path = Path(ref)
    if path.name in FOLDERS.values() and not path.is_dir():  # a user's model may be called "dense"
        raise RequestError(
            f"{path}: {wanted_by} needs this artefact and it is not there; "
            "run the earlier steps first (`pela run` runs them all)"
        )
    return ref


def input_digest(recipe: Recipe, section: str) -> str | None:
    """What identifies the weights that the step of this section would read now, as
    `pelacli.artefact.input_digest` gives it of an opened model.

    Returns:
        None where only opening the model could tell: a hub id, a timm name, random weights.

    Raises:
        OSError: a file of the weights can't be read.
    """
    ref = source(recipe, section)
    path = latest(Path(ref))
    if path is not None:
        return manifest.weights_digest(path)
    if recipe.weights == "random":
        return None
    pretrained = recipe.weights == "pretrained"
    plain = Path(ALIASES.get(ref, ref) if pretrained else recipe.weights)
    return manifest.digest_files(manifest.plain_weight_files(plain)) or None


def how_to_open(recipe: Recipe, ref: str) -> dict[str, Any]:
    """Keyword arguments for opening ``ref``: the recipe's, where it is the recipe's own model."""
    if latest(Path(ref)) is not None:
        return {}
    return {
        "weights": recipe.weights,
        "arch": recipe.arch,
        "model_args": recipe.model_args,
        "num_classes": recipe.num_classes,
        "seed": recipe.seed,
    }
