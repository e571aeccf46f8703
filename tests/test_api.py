"""The Python interface: load, save, plan and decompose."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

import pelacli
from pelacli import lowrank
from pelacli.errors import RequestError


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
    lowrank.fold(model)
    assert pelacli.decompose(model, ratio=0.5, policy="uniform").ranks()
    assert lowrank.low_rank_layers(copy.deepcopy(model)).keys() == {"0", "2"}
