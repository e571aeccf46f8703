"""Rows as text: CSV is for scripts, Markdown is for people."""

import csv
import io

import pytest

from pelacli.report import tables


def markdown_cells(rows):
    lines = [line.strip("|").split("|") for line in tables.to_markdown(rows).splitlines()]
    return [[cell.strip() for cell in line] for line in lines if "---" not in line[0]]


def test_markdown_escapes_what_would_end_a_cell():
    text = tables.to_markdown([{"a|b": "x|y\nz", "n": 1.0}])
    assert text.splitlines() == [r"| a\|b | n |", "| --- | ---: |", r"| x\|y z | 1 |"]


def test_values_are_short_in_markdown_and_have_six_digits_in_csv():
    rows = [
        {"model": "dense", "accuracy": 97.25, "params": 1_234_567, "latency_ms": float("nan")},
        {"model": "low-rank", "accuracy": 0.00012345678901, "params": None, "fits": True},
    ]
    assert markdown_cells(rows) == [
        ["model", "accuracy", "params", "latency_ms", "fits"],
        ["dense", "97.25", "1,234,567", "–", "–"],
        ["low-rank", "0.0001235", "–", "–", "yes"],
    ]
    assert tables.to_markdown(rows).splitlines()[1] == "| --- | ---: | ---: | ---: | --- |"
    assert list(csv.DictReader(io.StringIO(tables.to_csv(rows))))[1] == {
        "model": "low-rank", "accuracy": "0.000123457", "params": "", "latency_ms": "",
        "fits": "True",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (7, "7"), (999, "999"), (1000, "1.00 k"), (999_499, "999 k"),
        (999_500, "1.00 M"), (86_567_656, "86.6 M"), (35_128_000_000, "35.1 G"),
        (1.5e12, "1.50 T"), (-2500, "-2.50 k"), (None, "–"),
    ],
)  # fmt: skip
def test_a_number_for_people_has_three_digits_and_a_prefix(number, text):
    assert tables.human(number) == text
