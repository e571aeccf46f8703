"""Messages and progress are printed where someone reads them, and fit a terminal."""

from __future__ import annotations

import importlib
import io
import json
import re
import sys
import time

import pytest

from pelacli import console
from pelacli.cli import waiting
from pelacli.system import bytes_done


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
    assert any(re.fullmatch(r"pretrain ━.* 7 of 100 +0 s 0 s left", line) for line in lines)
    words = " ".join(lines).replace("  ", " ")
    for figure in ("loss 2.346", "perturbation 0.01", "lr 1.25e-05", "best accuracy 81.25"):
        assert figure in words


def test_a_long_wait_off_a_terminal_says_now_and_then_how_far_it_is(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(console, "verbosity", console.Verbosity())
    monkeypatch.setattr(console, "_FIRST", 0.02)
    with console.progress("calibrating", total=256) as bar:
        bar.advance(64, loss=0.5)
        bar._began -= 60.0
        wait_for(stream, "left")
    assert stream.getvalue().startswith("calibrating: 64 of 256, about 3 min left; loss 0.5\n")
    with console.progress("opening a model"):
        wait_for(stream, "so far")
    assert "opening a model: 0 s so far" in stream.getvalue()
    before = stream.getvalue()
    monkeypatch.setattr(console, "verbosity", console.Verbosity(quiet=True))
    with console.progress("opening a model"):
        time.sleep(0.05)
    assert stream.getvalue() == before


def test_what_was_done_before_says_nothing_of_the_time_left():
    """As in a training that goes on from a checkpoint."""
    plain = console.Progress("heal", total=100)
    plain.start_at(90)
    assert plain.line() == "heal: 0 s so far"
    plain.advance(5)
    plain._began -= 60.0
    assert plain.line() == "heal: 95 of 100, about 60 s left"


def test_the_time_that_is_left_is_said_once(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(console, "verbosity", console.Verbosity())
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    plain = console.Progress("calibrating", total=256)
    plain.announce(then="then its layers are corrected")
    for _ in range(4):
        now[0] += 30.0
        plain.advance(32)
    assert stream.getvalue() == (
        "calibrating: 2.8 to 4.7 min left, as the first 32 of 256 tell; "
        "then its layers are corrected\n"
    )


def test_work_of_unknown_length_says_nothing(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    plain = console.Progress("trying rates")
    plain.announce()
    plain.advance()
    assert stream.getvalue() == ""


def test_a_part_of_a_wait_has_an_estimate_of_its_own_and_after_it_none_is_made_up():
    plain = console.Progress("opening a model")
    with bytes_done.watched_by(plain):
        with bytes_done.part("reading", 4e9):
            bytes_done.done(1e9)
            plain._began -= 60.0
            assert plain.line() == "opening a model: reading: 1.0 of 4.0 GB, about 3 min left"
        with bytes_done.part("hashing", 4e9):
            bytes_done.done(1e9)
            assert plain.line() == "opening a model: hashing: 1.0 of 4.0 GB, about 0 s left"
            bytes_done.done(3e9)
        assert plain.line() == "opening a model: 0 s so far"
    plain.begin("fetching", None)
    plain.reach(39, 39)  # the first of several files: more may come
    assert plain.line() == "opening a model: fetching: 0 s so far"
    plain.reach(39, 78)
    assert plain.line() == "opening a model: fetching: 39 of 78, about 0 s left"


def test_the_time_that_is_left_shrinks_while_nothing_new_is_done(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    plain = console.Progress("correcting", total=4)
    now[0] = 30.0
    plain.advance()
    assert plain.left() == 90.0
    now[0] = 50.0
    assert plain.left() == 70.0


def test_what_is_not_known_before_turns_from_a_spinner_into_a_bar(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(console, "verbosity", console.Verbosity())
    monkeypatch.setenv("COLUMNS", "80")
    with console.file_progress("opening a model"):
        wait_for(stream, "opening a model")
        with bytes_done.part("reading", 4e9):
            bytes_done.done(1e9)
            wait_for(stream, "━")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert re.search(r"[⠀-⣿] opening a model 0 s", shown)
    assert re.search(r"opening a model: reading ━.* 1.0 of 4.0 GB 0 s 0 s left", shown)


def wait_for(stream, text):
    deadline = time.monotonic() + 20
    while text not in stream.getvalue():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("tty", "quiet", "said"), [(True, False, 1), (False, False, 0), (True, True, 0)]
)
def test_the_first_import_of_torch_is_announced_once(monkeypatch, tty, quiet, said):
    stream = Terminal() if tty else io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(console, "verbosity", console.Verbosity(quiet=quiet))
    monkeypatch.setattr(waiting, "_SLOW", "colorsys")
    before = list(sys.meta_path)
    for _ in range(2):
        monkeypatch.delitem(sys.modules, "colorsys", raising=False)
        with waiting.announced():
            importlib.import_module("colorsys")
            importlib.import_module("colorsys")
    assert stream.getvalue().count("loading torch …") == 2 * said
    assert sys.meta_path == before


def test_off_a_terminal_the_import_is_announced_after_a_while(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(console, "verbosity", console.Verbosity())
    monkeypatch.setattr(waiting, "_SLOW", "colorsys")
    monkeypatch.setattr(waiting, "_PATIENCE", 0.01)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with waiting.announced():
        importlib.import_module("colorsys")
        wait_for(stream, "loading torch …")


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
