"""The repair of BLIP and ViLT exchanges modules, and their contents stay the very same objects."""

from __future__ import annotations

import copy

import pair_world as world
import pytest
import torch
import transformers
from torch import nn
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention
from transformers.models.vilt.modeling_vilt import ViltEmbeddings

from pelacli.lowrank.linear import LowRankLinear
from pelacli.models.pairs.families import view_of
from pelacli.models.pairs.repairs import MaskedCrossAttention, OrderedEmbeddings

REPAIRED = {
    "BlipForQuestionAnswering": (
        "text_decoder.bert.encoder.layer.1.crossattention.self",
        BlipTextSelfAttention,
        MaskedCrossAttention,
        "query",
    ),
    "ViltForQuestionAnswering": (
        "vilt.embeddings",
        ViltEmbeddings,
        OrderedEmbeddings,
        "text_embeddings",
    ),
}


def plain(kind, tmp_path):
    """The model as transformers opens it, which pela has not touched."""
    return getattr(transformers, kind).from_pretrained(world.model(kind, tmp_path / "m"))


@pytest.mark.parametrize("kind", REPAIRED)
def test_a_view_exchanges_the_module_and_leaves_its_class_alone(kind, tmp_path):
    name, original, repaired, child = REPAIRED[kind]
    model = plain(kind, tmp_path).train()
    before, names = model.get_submodule(name), list(model.state_dict())
    parameters = dict(model.named_parameters())
    before.register_forward_hook(lambda *_: None)
    view_of(model)
    after = model.get_submodule(name)
    assert type(before) is original
    assert type(after) is repaired
    assert after.training
    assert after.config is before.config
    assert len(after._forward_hooks) == 1
    assert after.get_submodule(child) is before.get_submodule(child)
    assert list(model.state_dict()) == names
    assert all(parameter is parameters[n] for n, parameter in model.named_parameters())
    view_of(model)
    assert model.get_submodule(name) is after


@pytest.mark.parametrize("kind", REPAIRED)
def test_a_copy_of_a_repaired_model_is_repaired_and_shares_nothing(kind, tmp_path):
    name, _, repaired, _ = REPAIRED[kind]
    model = plain(kind, tmp_path)
    view_of(model)
    twin = copy.deepcopy(model)
    assert type(twin.get_submodule(name)) is repaired
    with torch.no_grad():
        for parameter in twin.get_submodule(name).parameters():
            parameter.fill_(7)
    assert not any(bool((p == 7).all()) for p in model.get_submodule(name).parameters())


def test_low_rank_layers_survive_the_repair(tmp_path):
    model = plain("BlipForQuestionAnswering", tmp_path)
    name, *_ = REPAIRED["BlipForQuestionAnswering"]
    low_rank = LowRankLinear(world.WIDTH, world.WIDTH, 4)
    model.get_submodule(name).query = low_rank
    view = view_of(model)
    assert model.get_submodule(name).query is low_rank
    states, mask = torch.randn(1, 3, world.WIDTH), torch.tensor([[1, 1, 0]])
    ids = torch.tensor([[world.DECODE, world.END]])
    logits = view.decode(ids, torch.ones_like(ids), states, mask)
    nn.init.normal_(low_rank.up.weight)
    assert not torch.allclose(view.decode(ids, torch.ones_like(ids), states, mask), logits)


def test_other_models_stay_as_they_are(tmp_path):
    model = plain("BlipForImageTextRetrieval", tmp_path)
    modules = list(model.modules())
    view_of(model)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
