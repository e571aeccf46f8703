"""A module of the user's own class: saved with its plan, and loaded into a module of that class."""

from __future__ import annotations

import json

import pytest
import torch
from older_artefacts import forget_digests
from safetensors.torch import load_file, save_file
from torch import nn

import pelacli
from pelacli.errors import RequestError
from pelacli.lowrank import find
from pelacli.manifest import document


class Net(nn.Module):
    """Tied, with a layer used twice, buffers of both kinds, and something frozen."""

    def __init__(self, width=32):
        super().__init__()
        self.words = nn.Embedding(50, width)
        self.a, self.b = nn.Linear(width, 64), nn.Linear(64, width)
        self.again = self.a
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 50, bias=False)
        self.out.weight = self.words.weight
        self.shift = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("places", torch.arange(4.0), persistent=False)

    def forward(self, ids):
        x = self.words(ids)
        x = x + self.b(self.a(x).relu())
        return self.out(self.norm(x + self.b(self.again(x)))) * self.scale


class Other(Net):
    pass


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x)


IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture
def saved(here):
    """A low-rank Net as ``a``."""
    torch.manual_seed(0)
    model = Net()
    model.scale.fill_(3.0)
    pelacli.decompose(model, ratio=0.5, scope="layers", batches=[IDS])
    pelacli.save(model, "a")
    return model.eval()


def everything(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    return state, flags, [m.training for m in model.modules()]


def same(one, other):
    return one[1:] == other[1:] and all(torch.equal(one[0][n], other[0][n]) for n in one[0])


def test_it_is_read_back_to_the_bit_into_the_same_class(saved):
    model = Net()
    again = pelacli.load("a", model=model)
    assert again is model
    assert torch.equal(again(IDS), saved(IDS))
    assert again.out.weight is again.words.weight
    assert again.again is again.a
    assert not again.training
    assert not again.shift.requires_grad
    assert again.a.up.weight.requires_grad
    assert torch.equal(again.places, torch.arange(4.0))
    ranks = {row.name: row.rank for row in document.read("a").layers if row.rank is not None}
    assert ranks == {name: layer.rank for name, layer in find.low_rank_layers(again).items()} != {}


def test_it_is_written_again_to_the_byte(saved, here):
    pelacli.save(pelacli.load("a", model=Net()), "b")
    files = [{p.name: p.read_bytes() for p in (here / name).iterdir()} for name in ("a", "b")]
    assert files[0] == files[1]
    assert files[0].keys() == {"README.md", "config.json", "model.safetensors", "pela.json"}


def test_what_is_dense_or_changed_since_is_saved_as_it_is(saved):
    plain = Plain()
    pelacli.save(plain, "dense")
    again = pelacli.load("dense", model=Plain())
    assert torch.equal(again.layer.weight, plain.layer.weight)
    saved.b = nn.Linear(64, 32)
    pelacli.save(saved, "b")
    again = pelacli.load("b", model=Net())
    assert torch.equal(again(IDS), saved(IDS))
    assert find.low_rank_layers(again).keys() == {"a"}


def test_the_weights_have_the_precision_that_they_were_saved_in(saved):
    pelacli.save(saved.bfloat16(), "half")
    model = pelacli.load("half", model=Net())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.places.dtype == torch.float32


def test_a_module_on_meta_is_filled(here):
    with torch.device("meta"):
        model = Plain()
    plain = Plain()
    pelacli.save(plain, "dense")
    assert torch.equal(pelacli.load("dense", model=model).layer.weight, plain.layer.weight)


def without_values():
    with torch.device("meta"):
        return Net()


def without_a_layer():
    model = Net()
    model.b = nn.Identity()
    return model


def with_another_layer():
    model = Net()
    model.c = nn.Linear(3, 3)
    return model


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Other, r"^a: is a model of Net, not of Other; give model=Net\(…\)$"),
        (lambda: Net(16), r"^a/model.safetensors: a.down.weight: has shape .* the model wants"),
        (without_a_layer, r"^a: b: not a layer .*; build the model with the arguments of the one"),
        (with_another_layer, r"^a: its weights lack c.weight and 1 more; build the model with"),
        (lambda: pelacli.load("a", model=Net()), r"^model: Net is low-rank already; give a dense"),
        (without_values, r'^a: does not hold places, which has no values on "meta"'),
    ],
)
def test_what_does_not_fit_is_named_and_left_as_it_is(saved, model, says):
    model = model()
    on_meta = model.scale.is_meta
    before = None if on_meta else everything(model.train())
    with pytest.raises(RequestError, match=says):
        pelacli.load("a", model=model)
    assert on_meta or same(everything(model), before)
    assert "_pela" not in vars(model) or "low-rank" in says


def test_damage_leaves_the_module_as_it_is(saved, here):
    forget_digests(here / "a")
    file = here / "a" / "model.safetensors"
    tensors = load_file(file)
    tensors["shift"][0] = float("nan")  # the last one that is read
    save_file(tensors, file)
    model = Net()
    before = everything(model)
    with pytest.raises(RequestError, match="shift: holds values that are not finite"):
        pelacli.load("a", model=model)
    assert same(everything(model), before)


def test_without_the_module_the_class_and_the_remedy_are_named(saved, pela):
    with pytest.raises(
        RequestError, match=r"^a: is a model of Net, .*load\('a', model=Net\(…\)\)$"
    ):
        pelacli.load("a")
    code, _, err = pela("decompose", "a", "--ratio", "0.5")
    assert code == 2
    assert "is a model of Net, which pela can't build" in err
    code, out, _ = pela("report", "a", "--json")
    assert code == 0
    assert json.loads(out)[0]["layers"]


def test_a_model_of_a_library_needs_no_module(here, artefact):
    with pytest.raises(RequestError, match=r"a: is a model of timm, built from its config.json"):
        pelacli.load("a", model=Net())


def test_what_is_no_artefact_can_be_read_into_no_module(here):
    (here / "plain").mkdir()
    for name in ("plain", "nowhere"):
        with pytest.raises(RequestError, match=rf"^{name}: not an artefact: there is no pela.json"):
            pelacli.load(name, model=Net())


def infinite():
    model = Plain()
    model.layer.bias.data[0] = float("inf")
    return model


class WithState(Plain):
    def get_extra_state(self):
        return {"step": 1}

    def set_extra_state(self, state):
        pass


def holding(tensor):
    model = Plain()
    model.register_buffer("held", tensor)
    return model


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (infinite, "layer.bias holds values that are not finite"),
        (WithState, "_extra_state in its state is no parameter or buffer"),
        (lambda: holding(torch.eye(3).to_sparse()), "held is no dense tensor"),
        (
            lambda: holding(torch.ones(2, dtype=torch.complex128)),
            "held is torch.complex128, for wh",
        ),
    ],
)
def test_what_would_not_come_back_is_named_and_nothing_is_written(here, model, says):
    with pytest.raises(RequestError, match=says):
        pelacli.save(model(), "a")
    assert not any(here.iterdir())
