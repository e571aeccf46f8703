"""Look before a recipe runs: its model and its data are there, and fit each other.

Nothing is computed, no weights of a name or of a directory are read, and nothing large is fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli.artefact import loading
from pelacli.console import warn
from pelacli.data import hub as data_hub
from pelacli.errors import PelaError, RequestError
from pelacli.manifest import lookup
from pelacli.manifest.digests import plain_weight_files
from pelacli.models import opening
from pelacli.models.opened import OpenModel
from pelacli.recipe import schema
from pelacli.recipe.aliases import ALIASES
from pelacli.recipe.data import Data
from pelacli.recipe.decompose import Decompose
from pelacli.recipe.keys import Key
from pelacli.recipe.schema import Eval, Recipe
from pelacli.recipe.step import NamedTask, Step, opening_of, step_of, steps_of
from pelacli.tasks import registry

PlaceOf = Callable[[Key], str]


def check(recipe: Recipe, place_of: PlaceOf) -> None:
    """Look for what a recipe names.

    What only a network could tell is noted where there is none, or where it would be fetched.

    Args:
        place_of: key → its place and name, which begin a message.

    Raises:
        RequestError: the first thing that is not there, by its place and key.
    """
    for use in _uses(recipe):
        with _named(place_of, use.task_key):
            registry.get(use.task.name, use.task.settings)
    with _named(place_of, ("model",)):
        try:
            opened = _model(recipe)
        except RequestError:
            raise
        except PelaError as error:
            warn(f"{place_of(('model',))}: not looked at, nor are the data: {error}")
            return
    for use in _uses(recipe):
        _check_data(use, opened, place_of)


@dataclass(frozen=True)
class _Use:
    """A split of data that a step reads by a task.

    Attributes:
        data_key: of the data's section, or of the name of a dataset.
        split_key: of the split's name.
        task_key: of the task's name.
    """

    data: Data
    split: str
    task: NamedTask
    unlabelled: bool
    data_key: Key
    split_key: Key
    task_key: Key


def _uses(recipe: Recipe) -> Iterator[_Use]:
    """All splits that the steps and the evaluation of a recipe read."""
    if recipe.decompose is not None:
        yield from _uses_of_decompose(step_of(recipe, "decompose"))
    for step in steps_of(recipe):
        if step.name != "decompose":
            yield from _uses_of_training(step)
    if recipe.eval is not None:
        yield from _uses_of_eval(recipe, recipe.eval)


def _uses_of_decompose(step: Step[Decompose]) -> Iterator[_Use]:
    settings, name = step.settings, step.name
    if step.calibration is not None:
        data, own = step.calibration.data, settings.calibrate == "train"
        key: Key = ("data", "dataset") if own else (name, "calibrate")
        split_key: Key = ("data", "train") if own else key
        yield _Use(data, data.train, step.calibration.task, True, key, split_key, ("task",))
    if settings.max_drop is not None and step.data is not None:
        at = _key_of_data(name, settings.data)
        split_key = (name, "split") if settings.split else (*at, "val")
        split = settings.split or step.data.val
        task_key = (name, "task") if settings.task else ("task",)
        yield _Use(step.data, split, step.task, False, (*at, "dataset"), split_key, task_key)


def _uses_of_training(step: Step[Any]) -> Iterator[_Use]:
    data, at = step.data, _key_of_data(step.name, step.settings.data)
    assert data is not None  # the recipe's validation has seen to it
    task_key = (step.name, "task") if step.settings.task else ("task",)
    unlabelled = getattr(step.settings, "labels", None) is False
    for name, split in (("train", data.train), ("val", data.val)):
        yield _Use(data, split, step.task, unlabelled, (*at, "dataset"), (*at, name), task_key)


def _uses_of_eval(recipe: Recipe, section: Eval) -> Iterator[_Use]:
    trained = recipe.finetune.data if recipe.finetune else None
    data = section.data or trained or recipe.data
    if data is None:
        return
    at = _key_of_data("eval", section.data) if section.data else _key_of_data("finetune", trained)
    judged = recipe.finetune if section.task is None and recipe.finetune else section
    named = NamedTask(*schema.task_of(recipe, judged))
    split_key: Key = ("eval", "split") if section.split else (*at, "val")
    task_key: Key = ("eval", "task") if section.task else ("task",)
    split = section.split or data.val
    yield _Use(data, split, named, False, (*at, "dataset"), split_key, task_key)


def _key_of_data(section: str, own: Data | None) -> Key:
    """The key of the data of a section: its own, or else the recipe's."""
    return (section, "data") if own is not None else ("data",)


def _model(recipe: Recipe) -> OpenModel:
    """The recipe's model. Only what is small is read of it: its shapes, and what it takes.

    Raises:
        RequestError: there is no such model, or it has no weights.
        PelaError: the hub, which would know it, can't be reached.
    """
    name = ALIASES.get(recipe.model, recipe.model)
    path = lookup.latest(Path(name))
    if path is not None:
        return loading.load(path).opened
    how = vars(opening_of(recipe))
    weights = recipe.weights
    if weights not in ("pretrained", "random") and not Path(weights).exists():
        raise RequestError(f"weights {weights}: there is no such file or directory")
    if Path(name).is_file() or weights not in ("pretrained", "random"):
        return opening.open(recipe.model, **how)
    if weights == "pretrained" and Path(name).is_dir() and not plain_weight_files(Path(name)):
        raise RequestError(f"{recipe.model}: has no safetensors weights; use weights = 'random'")
    return opening.open(recipe.model, **how, meta=True)


def _check_data(use: _Use, opened: OpenModel, place_of: PlaceOf) -> None:
    """Open a split, without reading its samples.

    Raises:
        RequestError: it can't be opened, or the model does not take its samples.
    """
    spec = use.data.dataset
    if spec.startswith("torch/"):
        warn(f"{place_of(use.data_key)}: {spec}: not looked at, as that would fetch it")
        return
    try:
        if spec.startswith("hfds/"):
            data_hub.check_split(spec, use.split)
            return
        task: Any = registry.get(use.task.name, use.task.settings)
        unlabelled = use.unlabelled or not task.LABELLED
        task.open(use.data, use.split, inputs=opened.inputs, unlabelled=unlabelled)
    except RequestError as error:
        key = use.split_key if "no split" in str(error) else use.data_key
        raise RequestError(f"{place_of(key)}: {error}") from None


@contextmanager
def _named(place_of: PlaceOf, key: Key) -> Iterator[None]:
    """While active, a refusal is said with the place of a key."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{place_of(key)}: {error}") from None
