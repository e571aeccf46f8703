"""Some of the inputs of benchmarks/hostile.py, and whether it would see what it looks for."""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Of ten kinds of files, and none of the slower commands.
INPUTS = (0, 4, 17, 23, 32, 36, 44, 79, 109, 160)


@pytest.fixture(scope="module")
def hostile():
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("hostile")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def whole(hostile, tmp_path_factory) -> Path:
    """The undamaged subjects."""
    root = tmp_path_factory.mktemp("hostile") / "whole"
    hostile.make(root)
    hostile.make_artefact(root)
    hostile.watch.install(root.parent)
    return root


def test_damaged_files_end_in_one_line_or_well(hostile, whole, tmp_path):
    results: dict[str, str] = {}
    rows = [hostile.one(n, whole, tmp_path / "space", results) for n in INPUTS]
    assert [row for row in rows if row["broken"]] == []
    assert {row["code"] for row in rows} <= {0, 2}


def test_the_same_number_is_the_same_input(hostile, whole, tmp_path):
    one, two = (hostile.one(3, whole, tmp_path / "space", {}) for _ in range(2))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}


def reads_outside():
    Path("../outside").read_bytes()


def writes_outside():
    Path("../outside").write_bytes(b"x")


def runs():
    subprocess.run(["true"], check=True)


def asks():
    sys.stdin.readline()


def prints_codes():
    print("\x1b[2J", file=sys.stderr)


def fails():
    raise ValueError("x")


def says_too_much():
    print("x" * 2000, file=sys.stderr)


def takes_long():
    while True:
        pass


@pytest.mark.parametrize(
    ("does", "broken"),
    [
        (reads_outside, "read /"), (writes_outside, "wrote /"), (runs, "subprocess.Popen"),
        (asks, "read standard input"), (prints_codes, "codes on standard error"),
        (fails, "ValueError left main()"), (says_too_much, "more than 1,000 characters"),
        (takes_long, "longer than 1 s on the clock"),
    ],
)  # fmt: skip
def test_it_sees_what_it_looks_for(hostile, whole, tmp_path, monkeypatch, does, broken):
    from pelacli import __main__

    (tmp_path / "outside").write_text("x")
    (tmp_path / "case").mkdir()
    monkeypatch.setattr(__main__, "main", does)
    monkeypatch.setattr(hostile.watch, "_IDLE", 1)
    call = hostile.watch.call((), tmp_path / "case", limit=1)
    assert any(broken in one for one in call.broken), call


def test_the_code_of_pela_may_be_read_where_no_path_names_it(hostile, whole, tmp_path, monkeypatch):
    """As in an editable installation, when a module is imported for the first time."""
    import pelacli
    from pelacli import __main__

    root = Path(pelacli.__file__).parent
    read = (root / "cli" / "recipes.py").read_bytes
    monkeypatch.setattr(__main__, "main", lambda: read() and None)
    monkeypatch.setattr(
        sys, "path", [one for one in sys.path if Path(one or ".").resolve() != root.parent]
    )
    assert not any("read" in one for one in hostile.watch.call((), tmp_path).broken)


def test_a_worker_that_ends_is_a_row(hostile, whole, tmp_path, monkeypatch):
    def one(number, *_):
        if number == 6:
            os._exit(3)
        return {"input": number, "code": 0, "broken": []}

    monkeypatch.setattr(hostile, "one", one)
    rows = list(hostile.rows(range(5, 9), tmp_path, {}, jobs=2))
    assert sorted(row["input"] for row in rows) == [5, 6, 7, 8]
    assert [row["input"] for row in rows if row["broken"]] == [6]
    assert "| all | 4 |" in hostile.table(rows)


def test_an_input_does_not_depend_on_those_before_it(hostile, tmp_path):
    import _hostile_damage as damage

    before = repr((damage.VALUES, damage.KEYS))
    for number in range(300):
        (tmp_path / "x.json").write_text('{"a": [1, {"b": 2}], "c": "d"}')
        damage.json_changed(random.Random(number), tmp_path / "x.json")
    assert repr((damage.VALUES, damage.KEYS)) == before
