"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from pelacli import console
from pelacli.__main__ import main
from pelacli.system import pace

# Nothing may reach for a hub; the tests of the hub start their own on loopback.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Processes that test side by side, and those that they start, would wait for each other's threads.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_sessionstart(session):
    if session.config.getoption("numprocesses") and "PYTEST_XDIST_WORKER" not in os.environ:
        return  # this process hands the tests out, and needs none of what follows
    # What a shell starts in the background ignores Ctrl-C, and so would all that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()  # until all is imported
    import torch
    from hypothesis import settings

    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
    # The same examples in every run, and no test fails for being slow on a busy machine.
    settings.register_profile("repeatable", deadline=None, derandomize=True)
    settings.load_profile("repeatable")


def pytest_collection_finish():
    """What is imported by now stays: the garbage collector need not look through it every time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


@pytest.fixture
def pela(capsys, monkeypatch):
    """Call the command line in this process: pela("report", …) → (exit code, stdout, stderr)."""

    def call(*args: object) -> tuple[int, str, str]:
        for flag in ("verbose", "quiet", "debug"):
            monkeypatch.setattr(console.verbosity, flag, False)
        monkeypatch.setattr(console.verbosity, "said", set())
        monkeypatch.setattr(console, "_FIRST", 3600)  # a slow machine says no more than a fast one
        monkeypatch.setattr(pace, "_LONG", 3600)
        monkeypatch.setattr(sys, "argv", ["pela", *map(str, args)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        out, err = capsys.readouterr()
        return int(code or 0), out, err

    return call


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A bare safetensors file of timm's test_vit with seven classes."""
    import timm
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("checkpoint") / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=7).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def decomposed(tmp_path_factory, checkpoint) -> Path:
    """The checkpoint at half its parameters. Shared: copy it before you change it."""
    from pelacli.cli import requests
    from pelacli.steps import decompose

    path = tmp_path_factory.mktemp("decomposed") / "a"
    step = requests.decompose(str(checkpoint), {"arch": "test_vit"}, {"ratio": "0.5"}, [], path)
    decompose.run(step)
    return path


@pytest.fixture
def artefact(here, decomposed) -> Path:
    """The decomposed checkpoint as ``a`` in the working directory."""
    return Path(shutil.copytree(decomposed, here / "a"))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
