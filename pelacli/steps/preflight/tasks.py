"""Whether the tasks that a recipe names are there and take their settings."""

from __future__ import annotations

from typing import Any

from pelacli.recipe import schema
from pelacli.recipe.keys import Key
from pelacli.recipe.schema import Recipe
from pelacli.recipe.step import NamedTask, Step
from pelacli.steps.preflight.problems import Problems
from pelacli.tasks import registry


def check(problems: Problems, recipe: Recipe, steps: list[Step[Any]], judged: bool) -> None:
    """Look whether all tasks are there, and take their settings."""
    tasks = [(step.task, key_of_task(step.name, step.settings)) for step in steps]
    if judged and recipe.eval is not None:
        section, settings = judged_by(recipe)
        named = NamedTask(*schema.task_of(recipe, settings))
        tasks.append((named, key_of_task(section, settings)))
    for task, key in tasks:
        with problems.at(key, lambda text, key=key: _if_settings(text, key)):  # type: ignore[misc]
            registry.get(task.name, task.settings)


def key_of_task(section: str, settings: Any) -> Key:
    """The key of the task of a section: its own, or else the recipe's."""
    return (section, "task") if settings.task else ("task",)


def _if_settings(message: str, key: Key) -> Key | None:
    return (*key[:-1], "task_args") if message.startswith("task_args") else None


def judged_by(recipe: Recipe) -> tuple[str, Any]:
    """(name, settings) of the section whose task [eval] judges by."""
    assert recipe.eval is not None
    if recipe.eval.task is None and recipe.finetune is not None:
        return "finetune", recipe.finetune
    return "eval", recipe.eval
