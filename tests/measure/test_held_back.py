"""How far a compressed model is from the dense one on samples that nothing was fitted to."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pelacli.factorize.sensitivity import CHUNK
from pelacli.measure.held_back import Distance, HeldBack


class Language(nn.Module):
    def __init__(self, vocabulary=20, width=8):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.body = nn.Linear(width, width)
        self.out = nn.Linear(width, vocabulary)

    def hidden(self, batch):
        return torch.tanh(self.body(self.embed(batch["input_ids"])))

    def logits(self, rows):
        return self.out(rows)

    def forward(self, batch):
        return self.out(self.hidden(batch))


@pytest.fixture
def factors():
    torch.manual_seed(2)
    return {"body": (torch.randn(3, 8), torch.randn(8, 3) / 3, torch.zeros(8))}


def test_the_distance_of_outputs_is_the_share_of_their_variance(factors):
    torch.manual_seed(0)
    net = nn.ModuleDict({"body": nn.Linear(8, 8)})
    batches = list(torch.randn(3, 40, 8))
    held_back = HeldBack(net, batches, lambda m, x: m["body"](x))
    dense = net["body"](torch.cat(batches)).detach()
    down, up, bias = factors["body"]
    ours = torch.cat(batches) @ down.T @ up.T + bias
    expected = (ours - dense).square().sum() / (dense - dense.mean(0)).square().sum()
    got = held_back.distance(factors)
    assert got.samples == 120
    assert got.relative_error == pytest.approx(float(expected), rel=1e-4)
    assert got.kl is got.perplexity is None
    assert type(net["body"]) is nn.Linear  # it is dense again


def test_each_pass_that_is_awaited_is_told(factors):
    net = nn.ModuleDict({"body": nn.Linear(8, 8)})
    batches = list(torch.randn(3, 40, 8))
    held_back = HeldBack(net, batches, lambda m, x: m["body"](x))
    calls = []
    awaited = [held_back.passes()]
    held_back.distance(factors, lambda: calls.append(1))
    assert len(calls) == awaited[0] == 6  # what the dense model gives has to be known first
    held_back.distance(factors, lambda: calls.append(1))
    assert len(calls) - 6 == held_back.passes() == 3


def test_a_language_models_distance_is_the_divergence_of_its_tokens(factors):
    torch.manual_seed(0)
    net = Language()
    ids = torch.randint(20, (5, CHUNK))
    mask = (torch.arange(CHUNK) < CHUNK - 3).repeat(5, 1).long()
    mask[0] = 1
    batches = [
        {"input_ids": i, "attention_mask": m}
        for i, m in zip(ids.split(2), mask.split(2), strict=True)
    ]
    got = HeldBack(net, batches, None, net, causal=True).distance(factors)
    with torch.no_grad():
        down, up, bias = factors["body"]
        states = torch.tanh(net.embed(ids) @ down.T @ up.T + bias)
        theirs, ours = net({"input_ids": ids}).log_softmax(-1), net.out(states).log_softmax(-1)
        kept = mask.bool()
        kl = (theirs.exp() * (theirs - ours)).sum(-1)[kept].mean()
        labelled = kept[:, 1:]
        losses = [F.nll_loss(lp[:, :-1][labelled], ids[:, 1:][labelled]) for lp in (ours, theirs)]
    assert got.samples == 5
    assert got.kl == pytest.approx(float(kl), rel=1e-4)
    assert got.perplexity == pytest.approx(math.exp(losses[0]), rel=1e-4)
    assert got.dense_perplexity == pytest.approx(math.exp(losses[1]), rel=1e-4)


def test_the_dense_model_has_no_distance():
    torch.manual_seed(0)
    net = Language()
    batches = [{"input_ids": torch.randint(20, (2, 6))}]
    got = HeldBack(net, batches, None, net).distance({})
    assert got == Distance(2, 0.0, 0.0)


@pytest.mark.parametrize(
    ("mine", "other", "closer"),
    [
        (Distance(1, 0.1), Distance(1, 0.2), True),
        (Distance(1, 0.2), Distance(1, 0.1), False),
        (Distance(1, 0.2, kl=0.1), Distance(1, 0.1, kl=0.2), True),
        (Distance(1, math.nan), Distance(1, 0.1), False),
        (Distance(1, 0.1), Distance(1, math.nan), True),
    ],
)
def test_the_nearer_model_is_closer(mine, other, closer):
    assert mine.closer_than(other) == closer


@pytest.mark.parametrize("size", [0.0, 3.0])
def test_outputs_that_do_not_vary_have_a_distance_too(factors, size):
    net = nn.ModuleDict({"body": nn.Linear(8, 8)})
    nn.init.zeros_(net["body"].weight)
    nn.init.constant_(net["body"].bias, size)
    held_back = HeldBack(net, [torch.randn(4, 8)], lambda m, x: m["body"](x))
    same = {"body": (torch.zeros(1, 8), torch.zeros(8, 1), torch.full((8,), size))}
    assert held_back.distance(same).relative_error == 0
    assert held_back.distance(factors).relative_error > 0
