"""The benchmark of healing says what pela's settings reach of the gain by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def healing(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import healing

    return healing


def row(setting, end, *, ratio="1/2", start=0.4):
    return {
        "samples": 256, "ratio": ratio, "seed": 0, "setting": setting, "start": start, "end": end,
        "rate": 1e-5 if setting == "pela" else setting, "best_step": 7, "figure": "relative_error",
        "settings": {"steps": 10, "batch": 8},
    }  # fmt: skip


def test_the_table_has_the_share_of_the_gain_of_the_best_rate_by_hand(healing):
    rows = [row("pela", 0.31), row("1e-6", 0.38), row("1e-5", 0.30)]
    line = healing.table(rows).splitlines()[-1]
    assert line == "| 256 | 1/2 | 0.4000 (1) | 0.3100 | 1e-05, 7 | 0.3000 | 1e-5 | 90% |"


def test_no_share_is_made_of_a_gain_that_there_was_not(healing):
    line = healing.table([row("pela", 0.4), row("1e-6", 0.4)]).splitlines()[-1]
    assert line.endswith("| no gain by hand |")


def test_rows_of_large_ratios_come_first(healing):
    rows = [row("pela", 0.3, ratio="1/3"), row("pela", 0.3, ratio="2/3")]
    first, second = healing.table(rows).splitlines()[-2:]
    assert (first.split("|")[2], second.split("|")[2]) == (" 2/3 ", " 1/3 ")


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(healing, tmp_path):
    args = healing.quick(healing.arguments(["--quick"]), tmp_path)
    rows = healing.run(args)
    assert [r["setting"] for r in rows] == ["pela", "1e-5"]
    assert all(r["end"] <= r["start"] * 1.05 for r in rows)
    lines = args.out.read_text().splitlines()
    args.out.write_text(lines[0] + "\n")
    assert healing.run(args)[1]["end"] == rows[1]["end"]
    assert args.out.read_text().splitlines()[0] == lines[0]
