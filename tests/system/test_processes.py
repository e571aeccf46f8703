"""Whether a launcher started several processes: only where WORLD_SIZE says more than one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from pelacli import console
from pelacli.errors import RequestError
from pelacli.system import processes

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# What a shell, a batch system or another program's launcher may leave behind.
LEFTOVERS = [
    {"RANK": "1"},
    {"RANK": ""},
    {"LOCAL_RANK": "0"},
    {"LOCAL_RANK": "1", "RANK": "1"},
    {"LOCAL_RANK": ""},
    {"WORLD_SIZE": "1", "RANK": "1"},
    {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
    {"WORLD_SIZE": "1", "RANK": "1", "LOCAL_RANK": "1"},
    {"WORLD_SIZE": "", "RANK": "1"},
    {"WORLD_SIZE": "two", "RANK": "1"},
    {"WORLD_SIZE": "0", "RANK": "3"},
    {"WORLD_SIZE": "-2", "RANK": "3"},
    {"WORLD_SIZE": "2.0", "RANK": "1"},
]
RECIPE = """
model = "vit_tiny_patch16_224"
weights = "random"
model_args = { img_size = 16, patch_size = 8, embed_dim = 32, depth = 2, num_heads = 2 }
num_classes = 10
output = "run"
device = "cpu"
data = { dataset = "digits", batch_size = 32 }
decompose = { ratio = "0.6" }
pretrain = { steps = 1, lr = 1e-3 }
"""


@pytest.fixture
def environment(monkeypatch):
    """Set the launchers' variables to these alone."""

    def set_(variables: dict[str, str]) -> None:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_


@pytest.mark.parametrize("variables", [{}, *LEFTOVERS], ids=str)
def test_one_process_is_the_first(environment, capsys, variables):
    environment(variables)
    assert (processes.launched(), processes.is_first()) == (1, True)
    console.print_json({"a": 1})
    assert json.loads(capsys.readouterr().out) == {"a": 1}


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"RANK": "1", "LOCAL_RANK": "0"}, False),  # the first of the second machine
    ],
)
def test_of_several_the_one_of_rank_0_talks(environment, capsys, variables, first):
    environment({"WORLD_SIZE": "2"} | variables)
    assert (processes.launched(), processes.is_first()) == (2, first)
    console.print_json({"a": 1})
    assert (capsys.readouterr().out != "") == first


# A run takes seconds; of each process alone all leftovers are tried above.
RUNS = [*LEFTOVERS[:3], *(pytest.param(one, marks=pytest.mark.slow) for one in LEFTOVERS[3:])]


@pytest.mark.parametrize("variables", RUNS, ids=str)
def test_leftovers_of_a_launcher_do_not_disturb_a_run(environment, pela, here, variables):
    """accelerate would wait for other processes, or fail for want of an address."""
    environment(variables)
    AcceleratorState._reset_state(True)
    Path("r.toml").write_text(RECIPE)
    code, out, err = pela("run", "r.toml", "--json")
    assert code == 0, err
    steps = json.loads(out)["steps"]
    assert [(one["step"], one["skipped"]) for one in steps] == [
        ("decompose", False), ("pretrain", False),
    ]  # fmt: skip


def test_a_group_of_one_stays_what_its_launcher_made_it(environment):
    group = dict(zip(NAMES, ("1", "0", "0", "localhost", "29500"), strict=True))
    environment(group)
    processes.ignore_leftovers()
    assert {name: os.environ.get(name) for name in NAMES} == group


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ({"RANK": "0"}, "MASTER_ADDR"),
        ({"MASTER_ADDR": "localhost"}, "RANK"),
        ({"MASTER_ADDR": "localhost", "RANK": "first"}, "RANK"),
    ],
)
def test_several_processes_that_can_not_meet_are_refused(environment, variables, missing):
    environment({"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "29500"} | variables)
    with pytest.raises(RequestError, match=f"WORLD_SIZE is 2, but {missing} .*unset WORLD_SIZE"):
        processes.join("cpu")


def test_a_single_process_gathers_and_adds_what_it_has():
    ones = torch.ones(2)
    assert processes.all_gather("a") == ["a"]
    assert processes.total(3) == 3
    assert processes.total(ones) is ones


def test_what_torch_says_of_the_others_is_not_on_the_standard_output(
    environment, monkeypatch, capfd
):
    """torch 2.9 writes it past Python, where a JSON document may follow."""
    environment({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost"})
    monkeypatch.setattr("accelerate.PartialState", lambda **_: os.write(1, b"met one\n"))
    processes.join("cpu")
    print("{}")
    assert capfd.readouterr() == ("{}\n", "met one\n")
