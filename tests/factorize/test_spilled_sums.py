"""The sums of a calibration lie on disk, and are the same to the bit."""

from __future__ import annotations

import tempfile

import pytest
import torch
from torch import nn

from pelacli.errors import PelaError
from pelacli.factorize import calibration
from pelacli.factorize.observation import LayerSums
from pelacli.factorize.spilled_sums import SpilledSums
from pelacli.lowrank import find
from pelacli.system.spill import SpillFile


def sums() -> LayerSums:
    known = LayerSums(narrow_in=True)
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(50, 8, generator=generator) for _ in range(2))
    known.add_forward(x, None)
    known.add_backward(g, g)
    return known


def test_what_is_read_is_what_was_written_and_no_matrix_stays_in_memory():
    mine, expected = sums(), sums()
    spilled = SpilledSums({"layer": mine, "never ran": LayerSums(narrow_in=True)})
    assert mine.gram is None
    assert mine.gradient is None
    for name, value in vars(expected).items():
        found = getattr(spilled["layer"], name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
    assert spilled["never ran"] == LayerSums(narrow_in=True)


def test_a_disk_that_takes_nothing_leaves_them_in_memory(monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    spilled = SpilledSums({"layer": sums()})
    expected = sums().gram
    assert expected is not None
    assert torch.equal(spilled["layer"].gram, expected)


def test_a_file_that_can_not_be_read_is_no_model_without_moments(monkeypatch):
    spilled = SpilledSums({"layer": sums()})
    monkeypatch.setattr(SpillFile, "last_rows", lambda *args: None)
    with pytest.raises(PelaError, match="temporary file with the calibration's sums"):
        spilled["layer"]


def test_calibration_keeps_no_sums_in_memory(monkeypatch):
    spilled = []
    monkeypatch.setattr(
        calibration, "SpilledSums", lambda sums: spilled.append(sums) or SpilledSums(sums)
    )
    module = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6))
    layers = find.find_layers(module)
    moments = calibration.collect(module, layers, [torch.randn(12, 6)], lambda m, x: m(x))
    assert all(known.gram is None and known.gradient is None for known in spilled[0].values())
    assert all(moments[layer.name].near is not None for layer in layers)
