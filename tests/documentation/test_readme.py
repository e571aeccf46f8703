"""The README is short, and its commands are those that a change is checked by."""

from __future__ import annotations

from documentation.pages import ROOT, blocks

README = ROOT / "README.md"


def test_it_is_read_in_a_few_minutes():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_its_test_command_is_what_a_change_must_pass():
    checked = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    (commands,) = [b.text for b in blocks("sh", [README]) if "pytest\n" in b.text]
    for command in commands.splitlines():
        assert command.replace("install", "install -q") in checked or command in checked


def test_trying_it_takes_two_commands():
    first = blocks("sh", [README])[0]
    assert first.text == "pip install .\npela run recipes/quickstart.toml\n"
