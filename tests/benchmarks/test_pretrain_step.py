"""The benchmark of training steps runs, and its reference way is the formulas."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """(pretrain_step, _steps), which are scripts and no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _steps
    import pretrain_step

    return pretrain_step, _steps


@pytest.fixture
def shape(modules):
    return modules[1].Shape(model="vit_tiny", size=32, batch=2, small=True)


def test_both_ways_of_healing_start_from_the_same_losses(modules, shape):
    _, steps = modules
    bench = steps.Bench(shape)
    reference, ours = (float(bench.steps[way]()) for way in ("reference", "ours"))
    assert reference == pytest.approx(ours, rel=1e-4)


def test_the_reference_runs_the_student_twice_and_leaks_into_the_teacher(modules, shape):
    _, steps = modules
    bench = steps.Bench(shape, "reference")
    student, passes = bench.trained["reference"], []
    student.register_forward_hook(lambda *_: passes.append(1))
    bench.steps["reference"]()
    assert len(passes) == 2
    assert bench.teacher.blocks[0].attn.qkv.weight.grad.abs().max() > 0
    assert bench.teacher.head.weight.grad is None


def test_half_the_layers_parameters(modules, shape):
    _, steps = modules
    bench = steps.Bench(shape)
    both = [bench.trained[way] for way in ("dense", "ours")]
    weights = [sum(p.numel() for n, p in m.blocks.named_parameters() if p.ndim == 2) for m in both]
    assert 0.45 < weights[1] / weights[0] <= 0.5


def test_figures_of_all_ways(modules, shape):
    benchmark, _ = modules
    options = benchmark.arguments(["--quick", "--model", "vit_tiny"])
    found = benchmark.timed(shape, options)
    assert set(found["steps"]) == {"dense", "reference", "ours"}
    assert found["steps"]["dense"]["floor"] == 1
    # Twice the student's forward and backward passes, and the products with their gradients.
    assert found["steps"]["reference"]["flops"] > 1.3 * found["steps"]["ours"]["flops"]
    found["memory"] = {way: {"peak": 2.0 + (way != "ours"), "state": 1} for way in found["steps"]}
    found |= {"shape": vars(shape), "machine": benchmark.machine()}
    found["targets"] = benchmark.targets(found)
    assert found["targets"]["our peak memory / the least of both"]["met"]
    assert benchmark.table(found).count("met |") == 4


def test_the_rounds_take_turns(modules):
    benchmark, _ = modules
    told = []
    runs = {name: lambda name=name: told.append(name) for name in "abc"}
    times = benchmark.rounds(runs, 3, "cpu")
    assert "".join(told) == "abcbcacab"
    assert {len(found) for found in times.values()} == {3}


@pytest.mark.slow
def test_quick_prints_its_targets(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "pretrain_step.py"), "--quick"]
    command += ["--json", str(tmp_path / "step.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("met |") == 4
    found = json.loads((tmp_path / "step.json").read_text())
    assert all(found["memory"][way]["peak"] > 0 for way in ("dense", "reference", "ours"))
    assert torch.__version__ == found["machine"]["torch"]
