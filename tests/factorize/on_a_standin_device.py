"""Calibrating, planning and factorising where the model is: tensors of two devices never meet.

`test_devices.py` runs these in a process of their own, since torch learns of a device but once.
"""

from __future__ import annotations

import copy

import pytest
import standin_device
import torch
from device_cases import CASES

import pelacli
from pelacli.factorize import engine, refit
from pelacli.system import devices

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def device():
    return standin_device.register()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("samples", ["no samples", "samples"])
def test_another_device_gives_the_same_model(name, samples, device):
    torch.manual_seed(0)
    make, batches = CASES[name]
    on_cpu = make()
    elsewhere = copy.deepcopy(on_cpu).to(device)
    given = batches() if samples == "samples" else None
    plans = [pelacli.decompose(m, ratio=0.7, batches=given) for m in (on_cpu, elsewhere)]
    assert plans[0].ranks() == plans[1].ranks()
    assert {p.device for p in elsewhere.parameters()} == {device}
    for name in plans[0].ranks():
        # Eigenvectors have no sign, and each solver has its own.
        one, other = (m.get_submodule(name) for m in (on_cpu, elsewhere))
        (down, up), (down_too, up_too) = one.factors(), other.factors()
        product = (up_too @ down_too).detach().cpu()
        torch.testing.assert_close(up @ down, product, atol=1e-4, rtol=1e-3)
        if one.bias is not None:
            torch.testing.assert_close(one.bias, other.bias.detach().cpu(), atol=1e-4, rtol=1e-3)


def test_tensors_of_two_devices_do_not_meet(device):
    """The stand-in does what it is for."""
    x = torch.ones(2, 2, device=device)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(2, 2)
    with pytest.raises(RuntimeError, match="numpy"):
        x.numpy()


def test_the_command_takes_a_device(device, pela, monkeypatch, tmp_path):
    """`--device` is where everything is computed; the artefact's weights come back from there."""
    seen = set()
    real = engine.solve

    def watched(layers, *args, **kwargs):
        seen.update(layer.weight.device for layer in layers)
        return real(layers, *args, **kwargs)

    monkeypatch.setattr(engine, "solve", watched)
    monkeypatch.setattr(devices, "select_precise", lambda name: device if name == "cuda" else CPU)
    monkeypatch.chdir(tmp_path)
    code, _, err = pela("decompose", "test_vit", "--weights", "random", "--ratio", "0.6",
                        "--device", "cuda", "-o", "out")  # fmt: skip
    assert code == 0, err
    assert seen == {device}
    assert {p.device.type for p in pelacli.load("out").parameters()} == {"cpu"}


def test_blocks_go_to_a_device_that_is_too_small_for_the_model(device, pela, monkeypatch, tmp_path):
    """They compute there one after the other, and give the layers that the CPU gives."""
    monkeypatch.setattr(devices, "select_precise", lambda name: device if name == "cuda" else CPU)
    monkeypatch.setattr(devices, "free_memory", lambda at: 1_500_000 if at == device else None)
    monkeypatch.chdir(tmp_path)
    seen = set()
    real = refit.Regression

    def watched(layer, known):
        seen.add(layer.weight.device)
        return real(layer, known)

    monkeypatch.setattr(refit, "Regression", watched)
    command = ("decompose", "test_vit", "--weights", "random", "--ratio", "0.6", "--calibrate",
               "digits", "--samples", "24")  # fmt: skip
    code, _, err = pela(*command, "--device", "cuda", "-o", "there")
    assert code == 0, err
    assert "its blocks go there one after the other" in err
    assert device in seen
    assert pela(*command, "--device", "cpu", "-o", "here")[0] == 0
    here, there = (pelacli.load(name) for name in ("here", "there"))
    x = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(here(x), there(x), atol=1e-3, rtol=1e-3)
