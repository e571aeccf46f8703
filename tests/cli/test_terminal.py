"""Tables on the terminal show every cell, and take no name for markup."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pelacli.cli import terminal


def printed(rows, width):
    stream = io.StringIO()
    Console(file=stream, width=width).print(terminal.table(rows))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 200])
def test_a_table_shows_every_cell(width):
    rows = [
        {"kind": "blocks.*.mlp.fc1", "layers": 3, "params": "7.08 M → 4.28 M", "energy": None},
        {"kind": "other", "layers": 12_345, "params": "78.7 M", "energy": 0.5},
    ]
    text = printed(rows, width)
    for cell in ("kind", "layers", "blocks.*.mlp.fc1", "7.08 M → 4.28 M", "12,345", "–", "0.5"):
        assert cell in text


def test_a_name_too_long_for_the_terminal_goes_on_in_the_next_line():
    name = "encoder_layer_with_a_name_of_its_own"
    lines = printed([{"layer": name, "params": 12_345_678}], 40).splitlines()
    assert max(map(len, lines)) <= 40
    start, rest = [line.split() for line in lines if "_" in line]
    assert start[0] + rest[0] == name
    assert start[1:] == ["12,345,678"]


def test_columns_of_numbers_are_aligned_to_the_right():
    lines = printed([{"name": "a", "n": 1}, {"name": "b", "n": 1000}], 80).splitlines()
    ends = {len(line.rstrip()) for line in lines if line.strip() and line.split()[0] in "ab"}
    assert len(ends) == 1


def test_brackets_in_a_name_are_no_markup():
    assert "[bold]x" in printed([{"[i]name": "[bold]x"}], 80)
    assert "[i]name" in printed([{"[i]name": "[bold]x"}], 80)
