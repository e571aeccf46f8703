"""What is propagated back through a language model, and how much of it is there at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pelacli.factorize import calibration, sensitivity
from pelacli.factorize.passes import Passes, draws_of
from pelacli.factorize.sensitivity import CHUNK, sampled_tokens
from pelacli.lowrank import find


class Language(nn.Module):
    """A language model in two parts: a layer, and a head over a vocabulary."""

    def __init__(self, vocabulary=11, width=6):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.body = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, vocabulary, bias=False)

    def hidden(self, batch):
        return torch.tanh(self.body(self.embed(batch["input_ids"])))

    def logits(self, rows):
        return self.out(rows)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Language()


def test_a_gradient_is_that_of_the_sampled_tokens_log_probability(model):
    states = torch.randn(5, 6)
    (gradient,) = sampled_tokens(model, states, 1, torch.Generator().manual_seed(3))
    p = model.logits(states).softmax(-1)
    chance = torch.rand(5, 1, generator=torch.Generator().manual_seed(3))
    tokens = (p.cumsum(1) < chance).sum(1)
    onehot = torch.nn.functional.one_hot(tokens, 11)
    assert torch.allclose(gradient, (p - onehot) @ model.out.weight, atol=1e-5)


def test_over_many_draws_the_gradients_have_the_fisher_moment(model):
    state = torch.randn(1, 6)
    draws = torch.cat(sampled_tokens(model, state.repeat(CHUNK, 1), 20, torch.Generator()))
    p = model.logits(state)[0].softmax(-1)
    W = model.out.weight
    fisher = W.T @ (torch.diag(p) - torch.outer(p, p)) @ W  # E[g gᵀ] of g = Wᵀ(p − onehot)
    got = draws.T @ draws / len(draws)
    assert float((got - fisher).detach().norm() / fisher.detach().norm()) < 0.1
    assert float(draws.mean(0).norm() ** 2 / got.trace()) < 0.01


def test_the_moments_of_a_language_model_are_those_of_its_sampled_tokens(model):
    batches = [{"input_ids": torch.randint(11, (4, 7))} for _ in range(2)]
    layers = [la for la in find.find_layers(model) if la.name == "body"]
    passes = Passes(draws=1, floor=1.0, seed=5)
    got = calibration.collect(model, layers, batches, None, passes, head=model)["body"]
    G = torch.zeros(6, 6)
    for number, batch in enumerate(batches):
        generator = draws_of(passes, number)
        y = model.body(model.embed(batch["input_ids"])).detach().flatten(0, 1).requires_grad_()
        states = torch.tanh(y)
        (gradient,) = sampled_tokens(model, states.detach(), 1, generator)
        states.backward(gradient)
        G += y.grad.T @ y.grad / 8
    assert torch.allclose(got.near.float(), G, rtol=1e-3, atol=1e-6)


def test_padding_feels_nothing(model):
    ids = torch.randint(11, (4, 7))
    mask = torch.arange(7).repeat(4, 1) < 5
    layers = [la for la in find.find_layers(model) if la.name == "body"]

    def collect(batch):
        passes = Passes(draws=1)
        return calibration.collect(model, layers, [batch], None, passes, head=model)["body"]

    padded = collect({"input_ids": ids, "attention_mask": mask.long()})
    short = collect({"input_ids": ids[:, :5]})
    assert torch.allclose(padded.near, short.near)
    assert torch.allclose(padded.far, short.far)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.entries = max(self.entries, result.numel())
        return result


def test_logits_are_there_for_a_few_tokens_at_a_time():
    model = Language(vocabulary=3000)
    batch = {"input_ids": torch.randint(3000, (8, 2 * CHUNK))}
    layers = [la for la in find.find_layers(model) if la.name == "body"]
    with Largest() as largest:
        calibration.collect(model, layers, [batch], None, head=model)
    assert CHUNK * 3000 <= largest.entries < 2 * CHUNK * 3000


def test_a_layer_in_the_head_is_observed_once_for_each_token(model):
    layers = find.find_layers(model)
    batch = {"input_ids": torch.randint(11, (4, CHUNK))}
    moments = calibration.collect(model, layers, [batch], None, head=model)
    assert moments["out"].tokens == moments["body"].tokens == CHUNK


def test_projections_count_each_output_by_its_spread():
    y = torch.randn(500, 3) * torch.tensor([1.0, 10.0, 0.1])
    y.requires_grad_()
    sensitivity.projection(y, torch.Generator()).backward()
    expected = 1 / y.detach().std(0, correction=0).expand(500, 3)
    assert torch.allclose(y.grad.abs(), expected, rtol=1e-4)


def test_inputs_alone_are_observed_in_the_head_too(model):
    batch = {"input_ids": torch.randint(11, (4, 7))}
    passes = Passes(gradients=False)
    moments = calibration.collect(model, find.find_layers(model), [batch], None, passes, head=model)
    assert moments["out"].tokens == moments["body"].tokens == 7
    assert moments["out"].near is None or moments["out"].far is None
