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


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_options_each_in_a_line(monkeypatch, capsys, shell):
    typed = "pela decompose vit_base --"
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", "3")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", typed)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("_PELA_COMPLETE", f"complete_{shell}")
    with pytest.raises(SystemExit) as exit_:
        make_app()(prog_name="pela")
    assert not exit_.value.code
    lines = capsys.readouterr().out.removeprefix("_arguments '*: :((").splitlines()
    names = [re.match(r'"?(--[a-z-]+)', line)[1] for line in lines]
    assert {"--ratio", "--calibrate", "--help"} <= set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("pela decompose vit_base --form ", {"auto", "factors", "pivots"}),
        ("pela recipes show quick", {"quickstart"}),
        ("pela veri", {"verify"}),
    ],
)
def test_shells_complete_words(monkeypatch, capsys, shell, typed, words):
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" ")) - 1))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", typed)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("_PELA_COMPLETE", f"complete_{shell}")
    with pytest.raises(SystemExit):
        make_app()(prog_name="pela")
    out = capsys.readouterr().out
    assert all(word in out for word in words)
    assert "energy" not in out
