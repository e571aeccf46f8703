"""Tables on the terminal show every cell, and take no name for markup."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil

import pytest
from rich.console import Console

from pelacli.cli import terminal
from pelacli.report.tables import human


def printed(rows, width):
    stream = io.StringIO()
    Console(file=stream, width=width).print(terminal.table(rows, width))
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


def test_a_long_name_goes_on_after_a_dot():
    name = "encoder.layer.10.attention.self.query"
    lines = printed([{"layer": name, "params": "7.08 M → 4.28 M"}], 45).splitlines()
    start, rest = [line.split() for line in lines if "." in line]
    assert (start[0], rest[0]) == ("encoder.layer.10.", "attention.self.query")
    assert start[1:] == ["7.08", "M", "→", "4.28", "M"]


def test_columns_of_numbers_are_aligned_to_the_right():
    lines = printed([{"name": "a", "n": 1}, {"name": "b", "n": 1000}], 80).splitlines()
    ends = {len(line.rstrip()) for line in lines if line.strip() and line.split()[0] in "ab"}
    assert len(ends) == 1


def test_brackets_in_a_name_are_no_markup():
    assert "[bold]x" in printed([{"[i]name": "[bold]x"}], 80)
    assert "[i]name" in printed([{"[i]name": "[bold]x"}], 80)


SWEEP = [
    {
        "ratio": "0.9", "achieved": "0.8997", "parameters": "33.4 M", "FLOPs": "67.7 G",
        "energy kept": "88.63%", "damage": "11.14", "factorised": 8, "dense": 17,
        "ranks, median": "17–29, 28", "note": "not possible: smallest 0.3525",
    }
]  # fmt: skip
KINDS = [
    {
        "kind": "encoder.layer.*.attention.self.query", "layers": "12", "shape": "768×768",
        "rank": "dense (output head)", "energy": "34.80%", "params": "73.7 M → 17.4 M",
        "FLOPs": "14.9 G → 3.52 G",
    }
]  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80, 103, 104, 200])
@pytest.mark.parametrize("rows", [SWEEP, KINDS])
def test_columns_that_do_not_fit_follow_below_and_no_figure_is_broken(monkeypatch, rows, width):
    stream = io.StringIO()
    monkeypatch.setattr(
        "pelacli.console.stdout", lambda: Console(file=stream, width=width, no_color=True)
    )
    terminal.print_table(rows)
    lines = stream.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    for name, cell in rows[0].items():
        if re.match(r"[\d.]", str(cell)):
            assert any(str(cell) in line for line in lines), name
    for word in re.split(r"\s|(?<=[./_-])", " ".join(map(str, rows[0].values()))):
        assert any(word[:20] in line for line in lines), word
    parts = sum("columns wide" in line for line in lines)
    assert parts != 1
    assert (width < 200) or not parts


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_report_compares_first_and_no_figure_is_cut(pela, artefact, monkeypatch, width):
    shutil.copytree(artefact, artefact.parent / "another_name_of_some_length")
    params = json.loads(pela("report", "a", "--json")[1])[0]["params"]
    stream = io.StringIO()
    monkeypatch.setattr(
        "pelacli.console.stdout", lambda: Console(file=stream, width=width, no_color=True)
    )
    assert pela("report", "a", "another_name_of_some_length")[0] == 0
    lines = stream.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    heads = next(line.split() for line in lines if "MB" in line)
    assert heads[:2] == ["model", "MB"]
    assert f"{human(params['before'])} → {human(params['after'])}" in stream.getvalue()
    assert "…" not in stream.getvalue()
    left_out = " ".join(lines).count(f"left out in {width} columns: shape")
    assert left_out == (2 if width <= 80 else 0)


def test_a_pipe_cuts_and_folds_nothing(pela, artefact, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    name = "/".join(["a" + "b" * 199] * 8)
    (artefact.parent / name).parent.mkdir(parents=True)
    artefact.rename(artefact.parent / name)
    out = pela("report", name, "--by", "whole")[1]
    [line] = [line for line in out.splitlines() if "factorised" in line]
    assert name in line
    assert line.rstrip().endswith("%")


def test_what_torch_tells_developers_of_other_libraries_is_not_printed(pela):
    """torchao, where it is installed, makes torch do so as soon as transformers loads it."""
    pela("--version")
    assert not logging.getLogger("torch.utils._pytree").isEnabledFor(logging.WARNING)
