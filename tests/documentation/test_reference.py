"""The reference has every command, key and file, and a word on each; most is made of the code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import typer
from documentation.pages import ROOT

from pelacli.artefact import card
from pelacli.cli.app import make_app
from pelacli.manifest import document, evaluations
from pelacli.models import config_file
from pelacli.planning import stored
from pelacli.recipe import layout
from pelacli.recipe.schema import sections
from pelacli.report import curves
from pelacli.tasks import registry


@pytest.fixture(scope="module")
def generated():
    pytest.importorskip("sphinx", reason="pip install -e '.[docs]'")
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


def test_every_file_of_an_artefact_is_described():
    page = (ROOT / "docs" / "reference" / "artefacts.md").read_text(encoding="utf-8")
    kinds = (document, config_file, card, stored, curves, evaluations)
    for name in ["model.safetensors", *(kind.FILE for kind in kinds)]:
        assert f"| `{name}` |" in page
    for folder in (layout.workplace(Path("OUTPUT")), layout.moments_folder(Path("OUTPUT"))):
        assert f"`{folder}`" in page
