"""A recipe's run directory: which step writes where and reads what, without a look at the disk.

::

    runs/vit_base/
      dense/       the dense model, where the recipe trains one ([teacher])
      decompose/   the low-rank model
      pretrain/    … healed
      finetune/    … trained on the task
"""

from __future__ import annotations

from pathlib import Path

from pelacli.recipe.schema import Recipe

# section of the recipe → folder of its artefact, in the order in which the steps run
FOLDERS = {
    "teacher": "dense",
    "decompose": "decompose",
    "pretrain": "pretrain",
    "finetune": "finetune",
}
OF_WORKPLACE = ".training"  # behind an artefact's name, while it is trained


def sections(recipe: Recipe) -> list[str]:
    """The sections of the recipe's steps, in the order in which they run."""
    return [name for name in FOLDERS if getattr(recipe, name) is not None]


def folder(recipe: Recipe, section: str) -> Path:
    """Where the step of this section writes its artefact."""
    return Path(recipe.output) / FOLDERS[section]


def workplace(output: Path) -> Path:
    """Where the training of an artefact keeps its checkpoints until the artefact is written."""
    return output.with_name(output.name + OF_WORKPLACE)


def moments_folder(output: Path) -> Path:
    """Where calibration block by block keeps what it has until the artefact is written."""
    return output.with_name(f"{output.name}.factorising")


def dense(recipe: Recipe) -> str:
    """The dense model of a recipe: the one that it trains, or else the one that it names."""
    return str(folder(recipe, "teacher")) if recipe.teacher is not None else recipe.model


def source(recipe: Recipe, section: str) -> str:
    """What the step of this section starts from: the nearest earlier step that the recipe has."""
    if section == "teacher":
        return recipe.model
    order = list(FOLDERS)
    before = order[: order.index(section)]
    earlier = [name for name in sections(recipe) if name in before]
    return str(folder(recipe, earlier[-1])) if earlier else recipe.model


def result(recipe: Recipe) -> str:
    """What the recipe ends with: the artefact of its last training or factorising step."""
    steps = sections(recipe)
    return str(folder(recipe, steps[-1])) if steps else recipe.model
