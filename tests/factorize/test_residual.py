"""Following a layer's output to the sum it goes into, whatever happens to it on the way."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pelacli.factorize.residual import Watch, owed

C = 6


class Block(nn.Module):
    """x → x + P(layer(x)), in one of the ways in which models write it."""

    def __init__(self, way):
        super().__init__()
        self.way, self.layer = way, nn.Linear(C, C)
        self.gamma = nn.Parameter(torch.linspace(0.1, 2, C))

    def branch(self, y):
        if self.way == "scaled":
            return y * self.gamma
        if self.way == "scaled in place":
            return y.mul_(self.gamma)
        if self.way == "scaled by a view":
            return y * self.gamma.reshape(1, 1, -1) * 0.5
        if self.way == "dropout":
            return F.dropout(y, 0.5, training=False)
        if self.way == "windows":  # as Swin: 2 windows of 2, rolled, the last position cut off
            y = y.view(-1, 2, 2, C).permute(0, 2, 1, 3).contiguous().view(-1, 4, C)
            return torch.roll(y, 1, dims=1)[:, :3]
        return y

    def forward(self, x):
        y = self.layer(F.pad(x, (0, 0, 0, 1)) if self.way == "windows" else F.relu(x))
        if self.way == "normed":
            return x + F.layer_norm(y, (C,))
        if self.way == "gated":
            return x + y * x.sigmoid()
        if self.way == "other way round":
            return self.branch(y) + x
        if self.way == "in place":
            x += y
            return x
        return x + self.branch(y)


def followed(block, x):
    """(watch, the layer's output) of a run; the layer's output is followed."""
    watch, outputs = Watch(), []

    def hook(module, inputs, output):
        watch.follow(output)
        outputs.append(output.clone())

    handle = block.layer.register_forward_hook(hook)
    with torch.no_grad(), watch:
        block(torch.add(x, 0.0))  # a stream that the model itself has made
    handle.remove()
    return watch, outputs[0]


WAYS = ["plain", "scaled", "scaled in place", "scaled by a view", "dropout", "windows",
        "other way round", "in place"]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_debt_fills_the_gap_of_the_streams(way):
    """The layer's output with the debt added leads to the dense stream's sum."""
    torch.manual_seed(0)
    block = Block(way)
    x = torch.randn(2, 3, C)
    ours = x + torch.randn_like(x)
    watch, y = followed(block, x)
    assert watch.sum is not None
    assert torch.equal(watch.sum.stream, x)
    debt = owed(watch.sum, ours, y)
    assert debt.shape == y.shape
    with torch.no_grad():
        paid = ours + watch.sum.path(y + debt)
        dense = x + watch.sum.path(y)
    assert torch.allclose(paid, dense, atol=1e-5)


def test_nothing_is_owed_where_the_output_does_not_reach_the_sum():
    torch.manual_seed(0)
    x = torch.randn(2, 3, C)
    watch, y = followed(Block("windows"), x)
    debt = owed(watch.sum, x + 1, y)
    assert y.shape == (2, 4, C)
    assert (debt == 0).all(-1).sum() == 2  # one position of each sample is cut off
    assert torch.allclose(debt[debt != 0], torch.tensor(-1.0))


@pytest.mark.parametrize("way", ["normed", "gated"])
def test_what_is_not_linear_is_not_followed(way):
    watch, _ = followed(Block(way), torch.randn(2, 3, C))
    assert watch.sum is None


def test_the_number_of_a_call_is_the_same_in_another_run():
    block = Block("plain")
    first, _ = followed(block, torch.zeros(2, 3, C))
    second, kept = Watch(), []
    ones = torch.ones(2, 3, C)
    with torch.no_grad(), second:
        x = torch.add(ones, 0.0)
        kept.append(x)
        assert second.output_of(first.sum.call) is x
        assert second.output_of(99) is None
        block(x)


def test_an_output_is_not_kept_alive_to_be_followed():
    watch, y = Watch(), torch.zeros(2, 3)
    with watch:
        watch.follow(y)
        moved = y.view(3, 2)
    kept = [weakref.ref(tensor) for tensor in (y, moved)]
    del y, moved
    assert [tensor() for tensor in kept] == [None, None]
