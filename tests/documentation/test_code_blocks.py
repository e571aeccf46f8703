"""What the documentation tells people to type can be typed: options exist, recipes are valid,
Python compiles and uses names that there are."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from importlib import import_module
from itertools import pairwise

import pytest
import typer
from documentation.pages import PAGES, blocks

import pelacli
from pelacli.cli.app import make_app
from pelacli.recipe.schema import Recipe

SHELL = [*blocks("sh"), *blocks("console")]
PYTHON, TOML = blocks("python"), blocks("toml")
MINIMAL = {"model": "vit_base", "output": "runs/x", "data": {"dataset": "images"}}


def lines(block):
    """The block's commands: lines joined where they go on, prompts and comments left out."""
    text = block.text.replace("\\\n", " ")
    typed = text.splitlines()
    if block.words[0] == "console":
        typed = [line[2:] for line in typed if line.startswith("$ ")]
    return [words for line in typed if (words := shlex.split(line, comments=True))]


def calls(words):
    """The arguments of each pela in a line."""
    starts = [i for i, word in enumerate(words) if word == "pela"]
    starts += [i + 1 for i, pair in enumerate(pairwise(words)) if pair == ("-m", "pelacli")]
    for start in starts:
        rest = words[start + 1 :]
        end = next((i for i, word in enumerate(rest) if word in ("|", "&&", ">", "2>", "||")), None)
        yield rest[:end]


def parse(command, arguments, name="pela", parent=None):
    """Parse as a shell would call it; the command itself does not run."""
    context = command.make_context(name, list(arguments), parent=parent)
    if hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        child, inner, others = command.resolve_command(context, rest)
        parse(inner, others, child, context)


@pytest.mark.parametrize("block", SHELL, ids=[block.name for block in SHELL])
def test_commands_have_the_options_that_pages_show(block):
    app = typer.main.get_command(make_app())
    for words in lines(block):
        for arguments in calls(words):
            parse(app, arguments)


def test_scripts_of_the_examples_have_options_that_exist():
    app = typer.main.get_command(make_app())
    (script,) = (PAGES[0].parent / "examples").rglob("*.sh")
    typed = [shlex.split(line, comments=True) for line in script.read_text().splitlines()
             if line.startswith("pela ")]  # fmt: skip
    assert len(typed) == 5
    for words in typed:
        for arguments in calls(words):
            parse(app, arguments)


def test_a_command_with_an_unknown_option_would_be_seen():
    app = typer.main.get_command(make_app())
    with pytest.raises(Exception, match=r"No such option.*--rato"):
        parse(app, ["decompose", "vit_base", "--rato", "0.5"])
    assert sum(bool(list(calls(words))) for block in SHELL for words in lines(block)) > 40


@pytest.mark.parametrize("block", TOML, ids=[block.name for block in TOML])
def test_recipes_are_valid(block):
    """Those marked as excerpts lack what every recipe needs."""
    recipe = tomllib.loads(block.text)
    if "excerpt" in block.words:
        assert not recipe.keys() >= {"model", "output"}, "a whole recipe is no excerpt"
        recipe = {**MINIMAL, **recipe}
    Recipe.model_validate(recipe)


@pytest.mark.parametrize("block", PYTHON, ids=[block.name for block in PYTHON])
def test_python_compiles_and_its_names_exist(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pelacli":
            assert hasattr(pelacli, node.attr), node.attr
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pelacli"):
            module = import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def test_files_that_pages_name_are_there():
    """Paths of the repository in code, as ``benchmarks/decompose.py`` or ``tests/test_gpu.py``."""
    root = PAGES[0].parent
    named = re.compile(r"\b(?:benchmarks|tests|recipes|examples|pelacli)/[\w/.-]*\w\.\w+")
    for page in PAGES:
        if page.parent.name == "log":  # a record: files may be gone
            continue
        for path in named.findall(page.read_text(encoding="utf-8")):
            assert (root / path).exists(), f"{page.name}: {path}"
