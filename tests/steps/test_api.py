"""The Python interface: load, save, plan and decompose."""

from __future__ import annotations

import copy
import threading

import pytest
import timm
import torch
from torch import nn

import pelacli
from pelacli.errors import RequestError
from pelacli.export import dense
from pelacli.lowrank import find


def vit(**args):
    torch.manual_seed(0)
    return timm.create_model("test_vit", **args).eval()


def bare():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(module, state):
    now = module.state_dict()
    return now.keys() == state.keys() and all(torch.equal(now[n], state[n]) for n in state)


# What is low-rank already ------------------------------------------------------------------------


@pytest.mark.parametrize("call", [pelacli.decompose, pelacli.plan], ids=["decompose", "plan"])
@pytest.mark.parametrize("build", [vit, bare], ids=["timm", "any module"])
def test_what_is_low_rank_already_is_refused_and_stays_as_it_is(build, call):
    model = build()
    pelacli.decompose(model, ratio=0.9, scope="layers")
    before = weights(model)
    says = rf"^{type(model).__name__}: is low-rank already; decompose the dense model$"
    with pytest.raises(RequestError, match=says):
        call(model, ratio=0.8, scope="layers")
    assert same(model, before)


@pytest.mark.parametrize("call", [pelacli.decompose, pelacli.plan], ids=["decompose", "plan"])
def test_a_low_rank_artefact_is_refused_by_its_path(tmp_path, call):
    model = vit()
    pelacli.decompose(model, ratio=0.9, scope="layers")
    pelacli.save(model, tmp_path / "a")
    with pytest.raises(RequestError, match=r"a: is low-rank already; decompose the dense model"):
        call(pelacli.load(tmp_path / "a"), ratio=0.8, scope="layers")


def test_a_folded_model_is_dense_again():
    model = bare()
    pelacli.decompose(model, ratio=0.5, policy="uniform")
    dense.fold(model)
    assert pelacli.decompose(model, ratio=0.5, policy="uniform").ranks()
    assert find.low_rank_layers(copy.deepcopy(model)).keys() == {"0", "2"}


# Batches -----------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Residual blocks, and the most threads that were alive while any of them ran."""

    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])
        self.most = 0

    def forward(self, x, attention_mask=None):
        self.most = max(self.most, threading.active_count())
        for layer in self.layers:
            x = x + layer(x).tanh()
        return x.mean(1)


def factorised(batches, form):
    torch.manual_seed(0)
    model = Counting()
    before = threading.active_count()
    pelacli.decompose(
        model, ratio=0.8, scope="layers", policy="uniform", batches=map(form, batches)
    )
    return model, model.most - before


FORMS = {
    "tensors": lambda x: x,
    "dicts": lambda x: {"x": x, "attention_mask": torch.ones(x.shape[:2], dtype=torch.long)},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_thousand_batches_of_one_sample_are_walked_as_batches_of_32(form):
    torch.manual_seed(1)
    images = torch.randn(1000, 4, 8)
    model, threads = factorised(images.split(1), form)
    assert threads <= 2 * 32  # two streams of the 32 batches that a thousand samples fill
    wanted, _ = factorised(images.split(32), form)
    assert find.low_rank_layers(model).keys() == {f"layers.{i}" for i in range(3)}
    assert same(model, weights(wanted))
    plans = [
        pelacli.plan(Counting(), energy=0.9, batches=map(form, images.split(n))).ranks()
        for n in (1, 32)
    ]
    assert plans[0] == plans[1]
