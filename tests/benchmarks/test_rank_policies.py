"""The benchmark of policies runs, keeps its budgets and goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from generated_text import FILLERS, save_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """(rank_policies, _policies), which are scripts and no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _policies
    import rank_policies

    return rank_policies, _policies


@pytest.mark.slow
def test_quick_prints_a_line_per_policy(modules):
    _, policies = modules
    command = [sys.executable, str(BENCHMARKS / "rank_policies.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    named = [tuple(line.split()[1:4:2]) for line in lines[1:]]
    assert named == [
        (name, form)
        for name in policies.POLICIES
        for form in (("auto", "factors") if name in policies.OF_ANY_FORM else ("factors",))
    ]
    assert all(line.count("/") == 8 for line in lines[1:])  # three figures in each of four cells


def test_cells_share_the_budget_and_are_not_run_twice(modules, tmp_path, capsys):
    benchmark, policies = modules
    out = tmp_path / "cells.jsonl"
    flags = ["--out", str(out), "--model", "tiny", "--seeds", "0,1", "--samples", "16"]
    args = benchmark.arguments([*flags, "--ratios", "1/2,1"])
    rows = benchmark.run(benchmark.quick(tmp_path), args)
    for row in rows:
        assert row["achieved"] <= float(row["ratio"] if row["ratio"] == "1" else 0.5)
        if row["ratio"] == "1" and row["policy"] != "balf":
            assert row["error"] < 1e-6, row["policy"]  # nothing is left out
    cells = [(row["policy"], row["form"], row["ratio"], row["seed"]) for row in rows]
    calibrated = sum(looks for _, looks in policies.POLICIES.values())
    lines = len(policies.POLICIES) + calibrated + 2 * len(policies.OF_ANY_FORM)
    assert len(cells) == len(set(cells)) == 2 * lines

    kept = out.read_text().splitlines()
    out.write_text("\n".join(kept[:-3]) + "\n")  # stopped before the last three
    capsys.readouterr()
    again = benchmark.run(benchmark.quick(tmp_path), args)
    told = [line for line in capsys.readouterr().err.splitlines() if " seed " in line]
    assert len(told) == 3
    for new, old in zip(again, map(json.loads, kept), strict=True):
        assert new["error"] == pytest.approx(old["error"], abs=1e-4)


def test_a_language_model_is_judged_by_its_perplexity(modules, tmp_path):
    benchmark, _ = modules
    model = save_model("llama", "CausalLM", tmp_path / "lm")
    for name, first in (("fit", 0), ("test", 7)):
        lines = [" ".join(FILLERS[(first + i) % 24 :]) for i in range(60)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    flags = [
        "--model",
        str(model),
        "--texts",
        str(tmp_path / "fit.txt"),
        str(tmp_path / "test.txt"),
    ]
    small = [
        "--forms",
        "factors",
        "--block",
        "16",
        "--samples",
        "256",
        "--test-tokens",
        "128",
        "--ratios",
        "0.8",
    ]
    names = ["--policies", "plain-uniform,svd-llm,felt,pela", "--seeds", "0"]
    args = benchmark.arguments([*flags, *small, *names, "--out", str(tmp_path / "lm.jsonl")])
    rows = benchmark.run(benchmark.open_subject(args), args)
    assert [row["policy"] for row in rows] == ["plain-uniform", "svd-llm", "felt", "pela"]
    drops = {row["policy"]: row["drop"] for row in rows}
    assert rows[0]["dense"] == pytest.approx(rows[0]["metric"] + rows[0]["drop"])
    assert abs(drops["pela"]) < 0.1 * abs(rows[0]["dense"])
    assert rows[-1]["kl"] < rows[0]["kl"]
    names = ["--policies", "kfac-svd,kfac-lems", "--seeds", "0"]
    args = benchmark.arguments([*flags, *small, *names, "--out", str(tmp_path / "lm.jsonl")])
    rows = benchmark.run(benchmark.open_subject(args), args)
    assert [row["policy"] for row in rows[-2:]] == ["kfac-svd", "kfac-lems"]
    assert rows[-1]["kl"] < rows[0]["kl"]
