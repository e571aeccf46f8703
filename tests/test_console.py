"""Messages and progress are printed where someone reads them, and fit a terminal."""

from __future__ import annotations

import io
import json
import re

import pytest

from pelacli import console


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("no_color", [None, "1"])
def test_a_note_is_yellow_unless_no_color_is_set(monkeypatch, no_color):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(console, "verbosity", console.Verbosity())
    console.warn("look")
    assert "note: look" in terminal.getvalue()
    assert ("\x1b[33m" in terminal.getvalue()) == (no_color is None)


@pytest.mark.parametrize(
    ("tty", "flags", "printed"),
    [
        (True, {}, True),
        (False, {}, False),
        (False, {"verbose": True}, True),
        (True, {"quiet": True}, False),
        (True, {"quiet": True, "verbose": True}, False),
    ],
)
def test_messages_and_progress_need_a_terminal_or_verbose(monkeypatch, tty, flags, printed):
    stream = Terminal() if tty else io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(console, "verbosity", console.Verbosity(**flags))
    console.info("so far so good")
    with console.progress("working") as bar:
        bar.advance(1, loss=0.5)
    assert bool(stream.getvalue()) == printed


def test_figures_of_training_are_readable_at_80_columns(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(console, "verbosity", console.Verbosity())
    monkeypatch.setenv("COLUMNS", "80")
    figures = {
        "loss": 2.345678,
        "task": 2.1,
        "feature": 0.2456,
        "perturbation": 0.01,
        "lr": 1.25e-5,
    }
    with console.progress("pretrain", total=100) as bar:
        bar.advance(7, **figures, **{"samples/s": 1234.5, "best accuracy": 81.25})
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown)]
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("pretrain") and "7/100" in line and " left " in line
               for line in lines)  # fmt: skip
    words = " ".join(lines).replace("  ", " ")
    for figure in ("loss 2.346", "perturbation 0.01", "lr 1.25e-05", "best accuracy 81.25"):
        assert figure in words


def test_measurements_in_json_have_six_digits_and_whole_numbers_all_of_theirs(capsys):
    document = {
        "seconds": 0.12345678901234,
        "damage": (123456789.123, 1e-300),
        "params": 12_345_678_901,
        "seed": 2**60,
        "energy": float("nan"),
        "requested": "2/3",
        "done": True,
    }
    console.print_json(document)
    assert json.loads(capsys.readouterr().out) == {
        "seconds": 0.123457,
        "damage": [123457000.0, 1e-300],
        "params": 12_345_678_901,
        "seed": 2**60,
        "energy": None,
        "requested": "2/3",
        "done": True,
    }


def test_what_a_user_wrote_is_printed_to_its_last_digit(capsys):
    console.print_json({"lr": 0.00012345678}, exact=True)
    assert json.loads(capsys.readouterr().out) == {"lr": 0.00012345678}
