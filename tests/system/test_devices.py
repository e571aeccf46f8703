"""Models that are elsewhere are worked on here and go back (on a real GPU: test_gpu.py)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pelacli
from pelacli.errors import RequestError
from pelacli.system import devices


class Elsewhere(nn.Module):
    """Says where its parameters are, and writes down where it is sent."""

    def __init__(self, *places: str) -> None:
        super().__init__()
        self.places, self.sent = places, []

    def parameters(self, recurse=True):
        return iter([SimpleNamespace(device=torch.device(place)) for place in self.places])

    def cpu(self):
        return self.to("cpu")

    def to(self, place):
        self.sent.append(str(place))
        return self


def test_it_goes_back_whatever_happens():
    module = Elsewhere("cuda:1", "cuda:1")
    with devices.on_cpu(module):
        assert module.sent == ["cpu"]
    assert module.sent == ["cpu", "cuda:1"]
    with pytest.raises(ZeroDivisionError), devices.on_cpu(module):
        _ = 1 / 0
    assert module.sent[2:] == ["cpu", "cuda:1"]


def test_what_is_here_stays():
    module = Elsewhere("cpu")
    with devices.on_cpu(module):
        pass
    assert module.sent == []


def test_several_devices_are_refused():
    module = Elsewhere("cuda:1", "cpu", "cuda:0")
    with (
        pytest.raises(RequestError, match=r"several devices \(cpu, cuda:0, cuda:1\); move it"),
        devices.on_cpu(module),
    ):
        pass
    assert module.sent == []


def test_no_weights_are_refused():
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    for call in (pelacli.plan, pelacli.decompose):
        with pytest.raises(RequestError, match="Sequential: is on the device 'meta'"):
            call(module, ratio=0.5)
