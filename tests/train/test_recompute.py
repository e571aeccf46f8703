"""Activations that are computed again: the same gradients from less memory."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from pelacli.models import opening
from pelacli.train import recompute

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def gradients(module, x, on, forward=lambda m, x: m(x)):
    module = copy.deepcopy(module)
    with recompute.activations(module, on=on):
        loss = forward(module, x).square().mean()
    loss.backward()
    return [p.grad for p in module.parameters()]


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_gradients_are_bitwise_the_same(precision):
    vit = opening.open("vit_tiny", weights="random", model_args=TINY).module.train()
    x = torch.randn(4, 3, 16, 16)

    def forward(module, x):
        with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
            return module(x)

    plain, recomputed = (gradients(vit, x, on, forward) for on in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


class Watch(nn.Module):
    """Keeps a weak reference to what its activation gave."""

    def __init__(self):
        super().__init__()
        self.one, self.act, self.two = nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8)

    def forward(self, x, change=None):
        x = self.act(self.one(x))
        self.seen = weakref.ref(x)
        if change is not None:
            change(x)
        return self.two(x)


def test_the_output_of_an_activation_is_freed():
    torch.manual_seed(0)
    module, x = Watch(), torch.randn(5, 8)
    y = module(x)
    assert module.seen() is not None  # kept by the graph
    with recompute.activations(module):
        y = module(x)
    assert module.seen() is None
    y.sum().backward()
    assert module.two.weight.grad is not None
    assert not module.act._forward_hooks


def test_an_output_that_was_changed_in_place_is_kept():
    torch.manual_seed(0)
    module, x = Watch(), torch.randn(5, 8)

    def forward(module, x):
        return module(x, change=lambda t: t.detach().mul_(2))

    plain, recomputed = (gradients(module, x, on, forward) for on in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def test_a_tensor_in_the_memory_of_a_freed_output_is_not_mistaken_for_it():
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(16, 16), nn.GELU())]
    module, x = nn.Sequential(*layers), torch.randn(64, 16)
    plain, recomputed = (gradients(module, x, on) for on in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


@pytest.mark.parametrize("last", [torch.tanh, torch.sigmoid, lambda x: x.softmax(-1), torch.exp])
def test_nothing_stays_of_an_output_that_no_loss_comes_from(last):
    """These functions keep their own output; a BERT's pooler is one, which most losses pass by."""
    module, x = Watch(), torch.randn(5, 8)
    with recompute.activations(module):
        used = module(x)
        unused = last(used)
    seen = weakref.ref(unused)
    used.sum().backward()
    del used, unused
    gc.collect()
    assert seen() is None
    assert not [kept for kept in gc.get_objects() if type(kept) is recompute._Output]
