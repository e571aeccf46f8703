"""The reproduction runs by pela's own steps, goes on where it stopped and tells its targets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pelacli.errors import PelaError, RequestError
from pelacli.train import checkpoint, healing

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """(reproduce, _cells), which are scripts and no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _cells
    import reproduce

    return reproduce, _cells


def quick(reproduce, folder, *flags):
    methods = "dense;plain SVD, untrained;ours, N steps;backbone: ours, healed without labels"
    flags = ["--quick", "--out", str(folder / "rows.jsonl"), "--work", str(folder / "work"), *flags]
    args = reproduce.arguments([*flags, "--methods", methods, "--ratios", "1/2"])
    return reproduce.quick(args, folder)


@pytest.mark.slow
def test_rows_of_all_kinds_and_none_is_made_twice(modules, tmp_path, capsys):
    reproduce, _ = modules
    rows = reproduce.run(quick(reproduce, tmp_path, "--seeds", "0"))
    dense, svd, ours, backbone = rows
    assert {"accuracy", "transfer"} <= set(dense)
    assert dense["steps"] == 0
    assert svd["params"] < dense["params"]
    assert "transfer" not in svd
    assert ours["steps"] == 10
    assert set(ours["losses"]) == {"loss", "task", "feature", "logits"}
    assert ours["healing"]["loss"]["perturbation"] == 0
    assert 0 <= backbone["probe"] <= 100
    assert set(backbone["losses"]) == {"loss", "feature"}
    assert not list((tmp_path / "work" / "cells").iterdir())

    out = tmp_path / "rows.jsonl"
    kept = out.read_text().splitlines()
    out.write_text("\n".join(kept[:2]) + "\n")  # stopped before the third
    capsys.readouterr()
    again = reproduce.run(quick(reproduce, tmp_path, "--seeds", "0"))
    assert len([line for line in capsys.readouterr().err.splitlines() if " seed " in line]) == 2
    for new, old in zip(again, map(json.loads, kept), strict=True):
        for key in ("accuracy", "transfer", "probe", "losses"):
            assert new.get(key) == old.get(key), key
    assert backbone["teacher"] is None
    assert ours["teacher"] == dense["teacher"]
    out.write_text(json.dumps(json.loads(kept[0]) | {"teacher": "0" * 16}) + "\n")
    with pytest.raises(RequestError, match="another teacher"):
        reproduce.run(quick(reproduce, tmp_path, "--seeds", "0"))
    out.write_text("\n".join(kept) + "\n")
    args = quick(reproduce, tmp_path, "--seeds", "0")
    args.steps += 1
    with pytest.raises(RequestError, match="other settings"):
        reproduce.run(args)


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on(modules, tmp_path, monkeypatch):
    reproduce, cells = modules
    args = quick(reproduce, tmp_path, "--seeds", "0")
    rows = reproduce.run(args)
    args.out.write_text("")

    train = cells.Workshop._train
    monkeypatch.setattr(cells.Workshop, "_train", lambda *a: train(*a) | {"save_every": 4})
    losses, calls = healing.Stage.losses, []

    def stops(self, student, batch, done=1.0):
        calls.append(1)
        if len(calls) == 7:
            raise PelaError("stopped here")
        return losses(self, student, batch, done)

    monkeypatch.setattr(healing.Stage, "losses", stops)
    with pytest.raises(PelaError, match="stopped here"):
        reproduce.run(args)
    work = tmp_path / "work" / "cells" / "ours-N-steps-1_2-0" / "pretrain.training"
    assert checkpoint.steps(work)
    again = reproduce.run(args)
    assert len(calls) == 7 + 6 + 10  # from step 4 of 10 on; the backbone's healing is a run more
    for key in ("accuracy", "transfer", "probe"):
        assert [row.get(key) for row in again] == [row.get(key) for row in rows]


def test_the_plan_names_every_cell(modules, capsys):
    reproduce, cells = modules
    reproduce.main(["--plan", "--steps", "100", "--rate", "100"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("hours")
    all_ = cells.cells(["2/3", "1/2", "1/3"], [0, 1, 2], list(cells.METHODS))
    assert len(lines) == len(all_) + 4
    three = [c for c in all_ if c.ratio == "1/2" and c.name == "ours, N steps"]
    assert [c.seed for c in three] == [0, 1, 2]
    assert [c.seed for c in all_ if c.ratio == "1/3" and c.name == "ours, N steps"] == [0]
    once = {c.name for c in all_ if not c.method.seeded}
    assert "plain SVD, untrained" in once
    assert {c.seed for c in all_ if c.name in once} == {0}
    assert {c.ratio for c in all_ if "without" in c.name and c.method.start == "svd"} == {"1/2"}
    assert len({c.slug for c in all_}) == len(all_)


def test_targets_are_told_as_they_are(modules):
    reproduce, _ = modules
    figures = {
        ("dense", "1"): [93.0, 93.0],
        ("ours, N steps", "1/2"): [92.9, 92.7],
        ("ours, N steps", "1/3"): [92.3],
        ("ours, N/10 steps", "1/2"): [91.0],
        ("the paper's, N steps", "1/2"): [90.0, 90.5],
    }
    settings = {"tests": 3000, "steps": 300, "batch": 32}
    rows = [
        {"method": name, "ratio": ratio, "seed": i, "accuracy": value, "settings": settings}
        for (name, ratio), values in figures.items()
        for i, value in enumerate(values)
    ]
    told = {what: (measured, met) for what, _, measured, met in reproduce.targets(rows)}
    assert told["points lost at 1/2, N steps"] == ("0.20", "met")
    assert told["points lost at 1/3, N steps"] == ("0.70", "not met")
    assert told["ours at N/10 against the paper's at N, 1/2"] == ("91.00", "met")
    text = reproduce.table(rows)
    assert "| dense | 93.00 | 93.00 |" in text
    assert "| ours, N steps | 92.80 ± 0.14 (2) | 92.30 |" in text


@pytest.mark.slow
def test_quick_prints_every_method(modules):
    _, cells = modules
    command = [sys.executable, str(BENCHMARKS / "reproduce.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in cells.METHODS:
        assert f"| {name.removeprefix('backbone: ')} |" in done.stdout
    assert done.stdout.count("met |") == 5
