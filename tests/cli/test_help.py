"""The help of every command: it fits 80 columns, says what to type, and its examples parse."""

from __future__ import annotations

import re
import shlex

import pytest
import typer
from documentation.test_code_blocks import parse

from pelacli.cli.app import make_app


def commands(command, path=()):
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


APP = typer.main.get_command(make_app())
ALL = dict(commands(APP))
NAMES = [" ".join(("pela", *path)) for path in ALL]


@pytest.fixture
def shown(monkeypatch, pela):
    monkeypatch.setenv("COLUMNS", "80")
    return lambda path: pela(*path, "--help")[1]


@pytest.mark.parametrize("path", ALL, ids=NAMES)
def test_help_fits_and_names_no_type_of_python(shown, path):
    text = shown(path)
    assert "Usage: " in text
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"<(bool|str|int|float|path|list)", text)


@pytest.mark.parametrize("path", ALL, ids=NAMES)
def test_options_name_their_value_and_switches_show_none(path):
    for parameter in ALL[path].params:
        if getattr(parameter, "is_flag", False):
            assert not parameter.metavar
        else:
            assert parameter.metavar == parameter.metavar.upper(), parameter.name


def test_brackets_are_no_markup(shown):
    assert "[pretrain]" in shown(("heal",))
    assert "[finetune]" in shown(())


def test_what_all_commands_have_stands_last(shown):
    text = shown(("decompose",))
    titles = re.findall(r"─ (.*?) ─", text)
    assert titles[0] == "Arguments"
    assert titles[-1] == "Every command"
    assert text.index("--help") > text.index("Every command") > text.index("--ratio")


def test_examples_can_be_typed():
    typed = [line for command in ALL.values() for line in (command.epilog or "").splitlines()[1:]]
    assert len(typed) > 20
    for line in typed:
        dollar, pela, *arguments = shlex.split(line)
        assert (dollar, pela) == ("$", "pela")
        if arguments[0] != "COMMAND":
            parse(APP, arguments)
