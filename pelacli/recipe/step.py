"""A step: all that one section of a recipe asks for, resolved once, without a look at the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast, overload

from pelacli.errors import RequestError
from pelacli.recipe import layout, schema
from pelacli.recipe.data import Data
from pelacli.recipe.decompose import Decompose
from pelacli.recipe.fields import Section
from pelacli.recipe.schema import Recipe
from pelacli.recipe.training import Pretrain, Train

Settings = TypeVar("Settings", bound=Section, covariant=True)


@dataclass(frozen=True)
class NamedTask:
    """A task by its name, with the settings (``task_args``) that it is made with.

    Attributes:
        is_default: neither the section nor the recipe names a task, and this is the default.
    """

    name: str
    settings: Mapping[str, Any]
    is_default: bool = False


@dataclass(frozen=True)
class Opening:
    """How to open a model that a recipe names, as keyword arguments of
    `pelacli.models.opening.open`. An artefact needs none of them."""

    weights: str = "pretrained"
    arch: str | None = None
    model_args: Mapping[str, Any] | None = None
    num_classes: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Calibration:
    """The unlabelled samples that [decompose] calibrates on, and the task that reads them."""

    data: Data
    task: NamedTask


@dataclass(frozen=True)
class Step(Generic[Settings]):
    """A step of a recipe.

    Attributes:
        name: of its section: "teacher", "decompose", "pretrain" or "finetune".
        settings: the section.
        task: the section's own, or else the recipe's.
        data: the section's own, or else the recipe's: what a training step trains on, and what
            decompose.max_drop measures on. None where neither is given.
        calibration: of a decompose step; None where it calibrates on nothing.
        model: the recipe's model.
        dense: the dense model: the artefact that [teacher] trains, or else ``model``.
        source: what the step starts from: a model or the artefact of an earlier step.
        opening: how to open ``source`` or ``dense`` where that is no artefact.
        output: directory of the artefact that the step writes.
        seed: of everything random.
        device: as in the recipe.
        document: the whole recipe with every default, as manifests keep it.
    """

    name: str
    settings: Settings
    task: NamedTask
    data: Data | None
    calibration: Calibration | None
    model: str
    dense: str
    source: str
    opening: Opening
    output: Path
    seed: int
    device: str
    document: Mapping[str, Any]


@overload
def step_of(recipe: Recipe, name: Literal["decompose"]) -> Step[Decompose]: ...
@overload
def step_of(recipe: Recipe, name: Literal["pretrain"]) -> Step[Pretrain]: ...
@overload
def step_of(recipe: Recipe, name: Literal["teacher", "finetune"]) -> Step[Train]: ...
def step_of(recipe: Recipe, name: str) -> Step[Train | Decompose]:
    """The step of the section with this name. A recipe without [decompose] has its defaults.

    Raises:
        RequestError: the recipe has no such section.
    """
    section = cast(Train | Decompose | None, getattr(recipe, name))
    if section is None and name == "decompose":
        section = Decompose()
    if section is None:
        raise RequestError(f"the recipe has no [{name}] section")
    return Step(
        name=name,
        settings=section,
        task=task_of(recipe, section),
        data=section.data or recipe.data,
        calibration=_calibration(recipe, section) if isinstance(section, Decompose) else None,
        model=recipe.model,
        dense=layout.dense(recipe),
        source=layout.source(recipe, name),
        opening=opening_of(recipe),
        output=layout.folder(recipe, name),
        seed=recipe.seed,
        device=recipe.device,
        document=schema.resolved(recipe),
    )


def steps_of(recipe: Recipe) -> list[Step[Train | Decompose]]:
    """The steps that the recipe has sections for, in the order in which they run."""
    return [step_of(recipe, cast(Any, name)) for name in layout.sections(recipe)]


def task_of(recipe: Recipe, section: Train | Decompose | None = None) -> NamedTask:
    """The task of a section: its own, or else the recipe's."""
    name, settings = schema.task_of(recipe, section)
    own = section.task if section is not None else None
    return NamedTask(name, settings, own is None and "task" not in recipe.model_fields_set)


def opening_of(recipe: Recipe) -> Opening:
    """How to open the recipe's model."""
    return Opening(recipe.weights, recipe.arch, recipe.model_args, recipe.num_classes, recipe.seed)


def _calibration(recipe: Recipe, section: Decompose) -> Calibration | None:
    if section.calibrate is None:
        return None
    if section.calibrate == "train":
        data = recipe.data
    else:
        policy = recipe.data.on_bad_sample if recipe.data is not None else "refuse"
        data = Data(dataset=section.calibrate, on_bad_sample=policy)
    assert data is not None  # the recipe's validation has seen to it
    return Calibration(data, task_of(recipe))
