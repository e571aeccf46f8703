"""Each command ends with a line that says what to do next, and it is a command that is there."""

from __future__ import annotations

import shlex

import pytest
import typer

from pelacli.cli import next_steps
from pelacli.cli.app import make_app
from pelacli.console import Verbosity
from pelacli.recipe.schema import Recipe


@pytest.fixture
def said(monkeypatch, capsys):
    monkeypatch.setattr("pelacli.console.verbosity", Verbosity(verbose=True))

    def lines():
        return capsys.readouterr().err.splitlines()

    return lines


def test_after_a_command_the_next_one_is_named(pela, artefact):
    ask = ("test_vit", "--weights", "random", "--ratio", "0.5", "-o", "my model")
    *_, last = pela("decompose", *ask, "-v")[2].splitlines()
    words = shlex.split(last.removeprefix("next: "))
    assert words == [
        "pela", "eval", "my model", "--against", "test_vit", "--weights", "random",
        "--data", "YOUR_DATA",
    ]  # fmt: skip
    assert "next:" not in pela("decompose", *ask)[2]
    assert "next:" not in pela("decompose", *ask, "--dry-run", "-v")[2]
    *_, last = pela("eval", "my model", "test_vit", "--no-latency", "-v", *ask[1:3])[2].splitlines()
    assert last == "next: pela report 'my model' --html report.html"


def test_after_a_step_of_a_recipe_comes_its_next_step(said):
    recipe = Recipe(
        model="m", output="o", data={"dataset": "d"}, pretrain={}, finetune={"epochs": 1}
    )
    commands = typer.main.get_command(make_app()).commands
    for section in ("teacher", "pretrain", "finetune"):
        next_steps.after_training("r.toml", recipe, section)
    lines = said()
    assert lines == [
        "next: pela heal r.toml", "next: pela finetune r.toml", "next: pela eval r.toml",
    ]  # fmt: skip
    assert all(line.split()[2] in commands for line in lines)
