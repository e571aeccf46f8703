"""Which device `decompose` computes on, and that it computes there alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

from pelacli.errors import RequestError
from pelacli.system import devices

HERE = Path(__file__).parent


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this release of torch has no devices written in Python",
)
def test_what_is_computed_on_a_device_is_computed_there_alone():
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, str(HERE / "on_a_standin_device.py")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
    assert "......." in run.stdout


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_device_with_too_little_memory_is_not_taken(name, pela, monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "select_precise", lambda name: torch.device("cuda"))
    monkeypatch.setattr(devices, "free_memory", lambda device: 1000)
    monkeypatch.chdir(tmp_path)
    code, _, err = pela("decompose", "test_vit", "--weights", "random", "--ratio", "0.6",
                        "--device", name, "-o", "out")  # fmt: skip
    assert "are free on cuda" in err
    assert code == (0 if name == "auto" else 2)


def test_double_precision_is_asked_of_no_apple_device(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(devices, "select", lambda name: torch.device("mps"))
    assert devices.select_precise("auto").type == "cpu"
    with pytest.raises(RequestError, match="no double precision"):
        devices.select_precise("mps")
