"""Tasks are found by their files, their settings are validated, their losses have names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pelacli import tasks
from pelacli.errors import RequestError
from pelacli.recipe.schema import Recipe, task_of
from pelacli.tasks import base, registry
from pelacli.tasks.base import Base

FILES = Path(registry.__file__).parent


def test_every_file_is_a_task() -> None:
    found = {path.stem for path in FILES.glob("*.py")} - {"__init__", "base", "registry"}
    wanted = {name.replace("_", "-") for name in found}
    assert set(registry.names()) == wanted
    assert {"image-classification", "unlabelled"} <= wanted
    for name in registry.names():
        assert isinstance(registry.get(name), Base)


@pytest.fixture
def counted(tmp_path, monkeypatch) -> str:
    """A task of one file more, with settings."""
    (tmp_path / "counted_things.py").write_text(
        "from pydantic import Field\n"
        "from pelacli.tasks.base import Base\n"
        "class Task(Base):\n"
        "    most: int = Field(3, ge=1)\n"
        "    def loss(self, output, batch):\n"
        "        return {'one': output.sum(), 'two': 2 * output.sum()}\n"
    )
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    return "counted-things"


def test_a_new_file_is_a_new_task(counted) -> None:
    assert counted in registry.names()
    task: Any = registry.get(counted, {"most": 5})
    assert task.most == 5
    named = base.losses(task, torch.ones(2), {}, weight=0.5)
    assert {name: float(value) for name, value in named.items()} == {"one": 1.0, "two": 2.0}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"mist": 1}, "task_args: task 'counted-things' has no 'mist'; did you mean 'most'?"),
        ({"other": 1}, "task_args: task 'counted-things' has no 'other'; it has most"),
        ({"most": 0}, "task_args.most: Input should be greater than or equal to 1 "),
        ({"most": "5"}, "task_args.most: Input should be a valid integer "),
    ],
)
def test_unknown_and_invalid_settings_are_named(counted, args, message) -> None:
    with pytest.raises(RequestError) as error:
        registry.get(counted, args)
    assert str(error.value).startswith(message)


def test_a_task_without_settings_says_so() -> None:
    with pytest.raises(RequestError, match="it has no settings"):
        registry.get("unlabelled", {"x": 1})


def test_a_section_s_task_and_settings_come_before_the_recipe_s() -> None:
    def of(section: dict[str, Any], **top: Any) -> tuple[str, dict[str, Any]]:
        whole = {"model": "m", "output": "o", "data": {"dataset": "d"}, "finetune": section}
        spec = Recipe.model_validate(whole | top)
        return task_of(spec, spec.finetune)

    assert of({}, task="a", task_args={"x": 1}) == ("a", {"x": 1})
    assert of({"task_args": {"x": 2}}, task="a", task_args={"x": 1}) == ("a", {"x": 2})
    assert of({"task": "b"}, task="a", task_args={"x": 1}) == ("b", {})
    assert of({"task": "b", "task_args": {"y": 1}}, task="a") == ("b", {"y": 1})
    assert of({"task": "a"}, task="a", task_args={"x": 1}) == ("a", {"x": 1})


def test_figures_are_nan_where_the_model_gives_nan(recwarn) -> None:
    """torchmetrics takes NaN for the first class."""
    task = registry.get("image-classification")
    batch = {"inputs": torch.ones(2, 3), "labels": torch.tensor([0, 0])}

    class Overflows(torch.nn.Module):
        def forward(self, x):
            return x * torch.tensor(float("nan"))

    good = base.evaluate(torch.nn.Identity(), [batch], task, "cpu", 3)
    assert good["accuracy"] == 100
    found = base.evaluate(Overflows(), [batch], task, "cpu", 3)
    assert set(found) == set(good)
    assert all(math.isnan(value) for value in found.values())
