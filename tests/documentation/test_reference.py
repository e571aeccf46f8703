"""The reference that the site makes of the code has every command and key, and a word on each."""

from __future__ import annotations

import sys

import pytest
import typer
from documentation.pages import ROOT

from pelacli.cli.app import make_app
from pelacli.recipe.schema import sections
from pelacli.tasks import registry


@pytest.fixture(scope="module")
def generated():
    sys.path.insert(0, str(ROOT / "docs" / "extensions"))
    import generated_reference

    yield generated_reference
    sys.path.remove(str(ROOT / "docs" / "extensions"))


def test_every_key_of_a_recipe_is_described(generated):
    page = generated.recipe_keys()
    for at, fields in sections().items():
        for key, field in fields.items():
            assert field.description, (at, key)
            if (*at, key) not in sections():
                assert f"| `{key}` |" in page


def test_every_setting_of_a_task_is_described(generated):
    page = generated.task_settings()
    for name in registry.names():
        assert f"### `{name}`" in page
        for key, field in type(registry.get(name)).model_fields.items():
            assert field.description, (name, key)


def test_every_option_is_described(generated):
    page = generated.commands()

    def check(command, name):
        for child, inner in getattr(command, "commands", {}).items():
            check(inner, f"{name} {child}")
        if not hasattr(command, "commands"):
            assert f"## `{name}`" in page
            for parameter in command.params:
                assert getattr(parameter, "help", None), (name, parameter.name)

    check(typer.main.get_command(make_app()), "pela")
    assert "| `--ratio RATIO` | " in page
