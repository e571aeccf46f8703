"""How far each layer's outputs have moved on samples that nothing was fitted to."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

import pelacli
from pelacli.lowrank.find import find_layers
from pelacli.lowrank.replace import in_form, replaced
from pelacli.measure import layer_errors
from pelacli.measure.held_back import HeldBack


class Net(nn.Module):
    """first → tanh → second, as models call them: as modules, transposed, or by reading weights."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        make = (lambda i, o: Conv1D(o, i)) if way == "conv1d" else nn.Linear
        self.first, self.second, self.unused = make(6, 8), make(8, 6), nn.Linear(6, 6)

    def forward(self, batch):
        return self._run(self.second, torch.tanh(self._run(self.first, batch["x"])))

    def _run(self, layer, x):
        return F.linear(x, layer.weight, layer.bias) if self.way == "reads" else layer(x)


def cut(layer, form):
    weight = layer.weight.detach()
    left, sizes, right = torch.linalg.svd(weight.T if isinstance(layer, Conv1D) else weight)
    factors = right[:3], left[:, :3] * sizes[:3], layer.bias.detach().clone()
    return in_form(factors, form)


@pytest.mark.parametrize("form", ["factors", "pivots"])
@pytest.mark.parametrize("way", ["called", "reads", "conv1d"])
def test_a_layers_error_is_the_share_of_its_outputs_variance_that_is_lost(way, form):
    torch.manual_seed(0)
    net = Net(way).eval()
    mask = torch.ones(3, 5)
    mask[0, 2:] = 0
    x = torch.randn(3, 5, 6)
    x[0, 2:] = 1e4  # padding, which counts for nothing
    batches = [
        {"x": x, "attention_mask": mask},
        {"x": torch.randn(2, 5, 6), "attention_mask": torch.ones(2, 5)},
    ]
    held_back = HeldBack(net, batches, lambda m, batch: m(batch), layers=find_layers(net))
    factors = {name: cut(getattr(net, name), form) for name in ("first", "second")}

    def outputs():
        seen = {"first": [], "second": []}
        with torch.no_grad():
            for batch in batches:
                known = batch["attention_mask"].bool()
                y = net._run(net.first, batch["x"])
                seen["first"].append(y[known])
                seen["second"].append(net._run(net.second, torch.tanh(y))[known])
        return {name: torch.cat(rows) for name, rows in seen.items()}

    dense = outputs()
    with replaced(net, factors):
        ours = outputs()
    got = held_back.distance(factors).layers
    assert got.keys() == {"first", "second"}  # nothing is known of one that never runs
    for name, z in dense.items():
        expected = (ours[name] - z).square().sum() / (z - z.mean(0)).square().sum()
        assert got[name] == pytest.approx(float(expected), rel=1e-4), name
    alone = held_back.distance({"second": factors["second"]}).layers
    assert alone["first"] == 0.0
    assert 0.0 < alone["second"] < got["second"]
    assert not net.first._forward_hooks


def test_only_some_tokens_are_kept_and_the_same_in_every_pass(monkeypatch):
    monkeypatch.setattr(layer_errors, "_MOST", 8)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6)).eval()
    batches = list(torch.randn(2, 50, 6))
    held_back = HeldBack(net, batches, lambda m, x: m(x), layers=find_layers(net))
    assert held_back.distance({}).layers == {"0": 0.0}
    assert [len(rows[0]) for rows in held_back._layers._kept.values()] == [4, 4]
    some = held_back.distance({"0": cut(net[0], "factors")}).layers["0"]
    whole = HeldBack(net, batches, lambda m, x: m(x)).distance({"0": cut(net[0], "factors")})
    assert some == pytest.approx(whole.relative_error, rel=0.8)
    assert whole.layers == {}


def test_a_decomposed_model_records_the_error_of_each_layer(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    samples = torch.randn(40, 8)
    pelacli.decompose(net, ratio=0.8, batches=samples)
    pelacli.save(net, tmp_path / "a")
    layers = json.loads((tmp_path / "a" / "pela.json").read_text())["layers"]
    assert all(0.0 < layer["held_back_error"] < 1.0 for layer in layers)
