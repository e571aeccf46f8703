"""Pieces of error messages: a library's error in one line, and the name that was meant."""

from __future__ import annotations

import time

import pytest

from pelacli.errors import PelaError
from pelacli.messages import closest, did_you_mean, one_line, printable, short_line

NAMES = ["vit_base", "vit_small", "swin_base", "workers"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such\tfile"), "no such file"),
        (ValueError("first\nsecond"), "first"),
        (RuntimeError("Error(s) in loading:\n\n    size mismatch\n    more"), "size mismatch"),
        (RuntimeError("only announced:"), "only announced:"),
        (KeyError(), "KeyError"),
        (ValueError(" \n "), "ValueError"),
        ("a text\nof two lines", "a text"),
    ],
)
def test_one_line_is_the_first_that_says_something(error, line):
    assert one_line(error) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Look at the above report! Shapes differ. See above.", "Shapes differ."),
        ("a 1.5 b: look above. c", "a 1.5 b: look above. c"),
        ("Bad value (see the message above)... x", ".. x"),
        ("the above report", "ValueError"),
    ],
)
def test_sentences_that_send_the_reader_elsewhere_are_left_out(text, line):
    assert one_line(ValueError(text)) == line


def test_a_message_that_quotes_a_whole_file_costs_no_time():
    began = time.process_time()
    one_line("y " * 20_000)
    assert time.process_time() - began < 2.0  # it was quadratic: a minute for half of this


def test_a_long_line_is_cut():
    assert one_line("x" * 1000) == "x" * 300
    assert one_line("abcdef", longest=3) == "abc"


def test_the_closest_names_come_best_first():
    assert closest("vit_bas", NAMES) == ["vit_base", "vit_small", "swin_base"]
    assert closest("vit_bas", NAMES, n=1) == ["vit_base"]
    assert closest("zzz", NAMES) == []


def test_a_hint_offers_close_names_and_else_what_is_given():
    assert did_you_mean("wrokers", NAMES) == "did you mean workers?"
    assert did_you_mean("wrokers", NAMES, quoted=True) == "did you mean 'workers'?"
    assert did_you_mean("vit_bas", NAMES, n=2) == "did you mean vit_base, vit_small?"
    assert did_you_mean("zzz", NAMES) == ""
    assert did_you_mean("zzz", NAMES, otherwise="see the list") == "see the list"


def test_an_error_of_pela_is_printed_in_one_line():
    assert str(PelaError("model.safetensors: a\n  b\t c")) == "model.safetensors: a b c"


# Each does something to a terminal, to the direction of reading or to an encoder.
CODES = [
    "\x1b[31m", "\x1b]0;title\x07", "\x1b]8;;http://x\x1b\\", "\x9b2J", "\x00", "\x08", "\r",
    "\x7f", "\u202e", "\u2066", "\u200f", "\u061c", "\ufeff", "\u200b", "\u2028", "\x85",
    "\udce9", "\U000e0041",
]  # fmt: skip


@pytest.mark.parametrize("code", CODES)
def test_codes_in_names_are_written_out(code):
    for text in (printable(f"a{code}b"), short_line(f"a{code}b")):
        assert text.isprintable()
        assert text.startswith("a")
        assert text.endswith("b")


def test_names_of_all_scripts_stay():
    for name in ("blöcke.0.fc", "层.1", "می‌خواهم", "क्षि", "👩‍💻", "→ √"):
        assert short_line(name) == name
        assert printable(name) == name


def test_a_line_is_short_and_a_text_keeps_its_lines():
    assert len(short_line("x" * 10_000)) < 620
    assert short_line("a\nb\tc") == "a b c"
    assert printable("a\nb\r", keep="\n") == "a\nb\\r"
