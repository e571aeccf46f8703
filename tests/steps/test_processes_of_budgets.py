"""Budgets that are measured, in points and in time, under a launcher: the first process works alone
and makes what one process makes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from json_output import document
from launched import by_torchrun
from pretended_timing import LowRankTakesLonger, pretended_layer_times
from safetensors.torch import load_file

import pelacli.__main__
from pelacli.measure import latency, layer_times
from pelacli.system import devices, processes

MODEL = (
    "test_vit", "--weights", "random", "--calibrate", "digits", "--samples", "48",
    "--set", "num_classes=10",
)  # fmt: skip
COMMANDS = {
    "drop": ("decompose", *MODEL, "--max-drop", "1", "--data", "digits", "--json"),
    "agreement": (
        "decompose", *MODEL, "--max-drop", "5", "--data", "digits", "--task", "unlabelled",
        "--json",
    ),
    "time": ("decompose", *MODEL, "--ratio", "0.9", "--unit", "latency", "--json"),
    "eval": ("eval", "drop", "--against", "agreement", "--data", "digits", "--json"),
}  # fmt: skip
RECIPE = """
model = "test_vit"
weights = "random"
num_classes = 10
output = "run"
device = "cpu"
data = { dataset = "digits" }
decompose = { max_drop = 1.0, calibrate = "train", samples = 48 }
"""


def run(*command: str) -> None:
    sys.argv = ["pela", *command]
    with contextlib.suppress(SystemExit):
        pelacli.__main__.main()


def pretend(patch=setattr) -> None:
    """Time by counting, on one core."""
    patch(latency, "side_by_side", LowRankTakesLonger())
    patch(layer_times, "measure", pretended_layer_times)
    patch(devices, "cores", lambda: 1)
    torch.set_num_threads(1)


def child(folder: Path) -> None:
    """What each of the two processes does."""
    os.chdir(folder)
    pretend()
    timed = latency.side_by_side
    for name, command in COMMANDS.items():
        run(*command, *(() if name == "eval" else ("-o", name)))
    run("run", "recipe.toml", "--json")
    Path(f"timed-{os.environ['RANK']}").write_text(str(len(timed.calls)))


@pytest.mark.slow
def test_one_of_two_processes_makes_what_one_makes(pela, here, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    theirs = here / "two"
    theirs.mkdir()
    for folder in (here, theirs):
        (folder / "recipe.toml").write_text(RECIPE)
    launch, environment = by_torchrun(
        __file__, theirs, 2, OMP_NUM_THREADS="1", XDG_CACHE_HOME=str(theirs / "cache")
    )
    running = subprocess.Popen(
        launch, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pretend(monkeypatch.setattr)
    one = {}
    for name, command in COMMANDS.items():
        one[name] = document(pela(*command, *(() if name == "eval" else ("-o", name))))
    document(pela("run", "recipe.toml", "--json"))
    said, stderr = running.communicate(timeout=400)
    assert running.returncode == 0, stderr
    decoder, two = json.JSONDecoder(), {}
    for name in COMMANDS:  # the second process says nothing
        two[name], end = decoder.raw_decode(said)
        said = said[end:].lstrip()
    for name in ("drop", "agreement", "time"):
        assert two[name]["layers"] == one[name]["layers"], name
        for row in (*one[name].get("curve", ()), *two[name].get("curve", ())):
            del row["seconds"]
        assert two[name].get("curve") == one[name].get("curve"), name
        mine, other = (load_file(root / name / "model.safetensors") for root in (here, theirs))
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine), name
    assert two["time"]["latency_ms"] == one["time"]["latency_ms"]
    for mine, other in zip(one["eval"], two["eval"], strict=True):
        assert other["metrics"] == pytest.approx(mine["metrics"], rel=1e-4)
        assert other["agreement"] == pytest.approx(mine["agreement"], rel=1e-4)
        assert other["latency_ms"] == mine["latency_ms"]  # of a whole batch
    assert int((theirs / "timed-0").read_text()) > 0
    assert (theirs / "timed-1").read_text() == "0"  # or it would disturb the first
    searched = (root / "run" / "decompose" / "model.safetensors" for root in (here, theirs))
    mine, other = map(load_file, searched)
    assert all(torch.equal(mine[key], other[key]) for key in mine)


def test_figures_of_one_process_that_works_alone_are_not_gathered(monkeypatch):
    """The others wait for it elsewhere, so it would wait for ever."""
    from pelacli.tasks import registry

    monkeypatch.setattr(torch.distributed, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    metrics = registry.get("image-classification").metrics(3)
    metrics.update(torch.eye(3), {"labels": torch.tensor([0, 1, 1])})
    with processes.alone():
        figures = metrics.compute()
    assert figures["accuracy"] == pytest.approx(200 / 3)


if __name__ == "__main__":
    child(Path(sys.argv[1]))
