"""FLOPs: torch's counter for the whole, tokens for each layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pelacli.artefact import description
from pelacli.lowrank import find, linear
from pelacli.measure import flops
from pelacli.models import examples, opening


class Net(nn.Module):
    """One layer that runs twice, one that is read, one that never runs, a convolution."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.twice, self.read, self.idle = nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(8, 8)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = self.twice(self.twice(x))
        return F.linear(x.mean(1), self.read.weight, self.read.bias)


def test_every_application_is_counted():
    net = Net()
    spent = flops.count(net, find.find_layers(net), lambda m: m(torch.zeros(1, 3, 16, 16)))
    assert spent.tokens == {"twice": 2 * 16, "read": 1}
    layers = 2 * 32 * 8 * 8 + 2 * 8 * 6
    assert spent.total == layers + 2 * 16 * 8 * 3 * 4 * 4
    assert flops.layer_flops((8, 8), 32, None) + flops.layer_flops((6, 8), 1, None) == layers


def test_figures_are_per_sample():
    net = Net()
    layers = find.find_layers(net)
    one = flops.count(net, layers, lambda m: m(torch.zeros(1, 3, 16, 16)))
    four = flops.count(net, layers, lambda m: m(torch.zeros(4, 3, 16, 16)), samples=4)
    assert one == four


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_layers_price_is_what_torch_counts(rank):
    low = linear.LowRankLinear(8, 12, rank)
    with FlopCounterMode(display=False) as counter:
        low(torch.zeros(5, 8))
    assert counter.get_total_flops() == flops.layer_flops((12, 8), 5, rank)


def test_attention_is_counted_though_its_kernel_is_fused():
    def attend(_module):
        q = torch.zeros(1, 2, 10, 4)
        return F.scaled_dot_product_attention(q, q, q)

    assert flops.count(nn.Identity(), [], attend).total == 2 * 2 * (2 * 10 * 10 * 4)


def test_shapes_alone_are_enough():
    opened = opening.open("test_vit", weights="random", meta=True)
    real = opening.open("test_vit", weights="random")
    spent = [
        flops.count(o.module, find.find_layers(o.module), lambda m, o=o: m(examples.example(o)))
        for o in (opened, real)
    ]
    assert next(opened.module.parameters()).is_meta
    assert spent[0] == spent[1]


class Looked(nn.Module):
    """A weight whose rows are looked up, one that is applied transposed, a parameter as input."""

    def __init__(self):
        super().__init__()
        self.table, self.turned, self.sized = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.query = nn.Parameter(torch.ones(2, 6))

    def forward(self, x):
        rows = self.table.weight.t()[torch.arange(2)]
        scale = self.sized.weight.shape[0] + len(self.sized.weight.size())
        return self.sized(self.query) * scale + rows + x @ self.turned.weight.T


def test_what_else_is_done_with_a_weight_is_told():
    net = Looked()
    layers = find.find_layers(net)
    spent = flops.count(net, layers, lambda m: m(torch.zeros(2, 6)))
    assert spent.tokens == {"turned": 2, "sized": 2}
    assert set(spent.reads) == {"table"}
    assert spent.total == 2 * (2 * 2 * 6 * 6)
    assert net.query.requires_grad
    found = {la.name: la.reason for la in description.with_read_weights_dense(layers, spent)}
    assert found == {"table": "its weight is read (__getitem__)", "turned": None, "sized": None}
    assert description.with_read_weights_dense(layers, None) == layers


def test_modes_are_given_back_even_after_an_error():
    net = Net().train()
    net.twice.eval()

    def fails(module):
        assert not module.training
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        flops.count(net, [], fails)
    assert [m.training for m in (net, net.twice, net.read)] == [True, False, True]
