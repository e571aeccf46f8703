"""The other arguments of the Python interface, and what the model is after a refusal."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import pelacli
from pelacli.api import factorising
from pelacli.errors import RequestError
from pelacli.lowrank import find
from pelacli.steps.solved import SolvedModel

BATCHES = [torch.randn(8, 3, 32, generator=torch.Generator().manual_seed(0))]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.Dropout(), nn.Linear(64, 32), nn.Linear(32, 8))


def snapshot(model):
    """All that a caller can see of a model."""
    parts = {
        name: (id(part), part.training, [id(hook) for hook in part._forward_hooks.values()])
        for name, part in model.named_modules()
    }
    tensors = {
        name: (id(p), p.requires_grad, p.dtype, p.grad, p.detach().clone().tolist())
        for name, p in model.named_parameters()
    }
    return parts, tensors, "_pela" in vars(model)


def refused(says, kind=RequestError):
    return pytest.raises(kind, match=says)


# Names and types ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "keywords", "says"),
    [
        (
            pelacli.decompose,
            {"polcy": 3},
            "decompose.. has no argument 'polcy'; did you mean policy",
        ),
        (pelacli.plan, {"maxrank": 3}, "plan.. has no argument 'maxrank'; did you mean max_rank"),
        (pelacli.save, {"pth": "x"}, "save.. has no argument 'pth'; did you mean path"),
        (pelacli.load, {"modle": 3}, "load.. has no argument 'modle'; did you mean model"),
        (pelacli.plan, {"zzz": 3}, "plan.. has no argument 'zzz'; known: .*ratio"),
    ],
)
def test_a_misspelt_argument_is_named_with_the_nearest_known_one(call, keywords, says):
    with refused(says, TypeError):
        call(net(), **keywords)


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"ratio": "half"}, "^ratio: 'half' is no ratio; give a decimal or a fraction"),
        ({"ratio": 50}, "^ratio: 50 is out of range; a ratio is above 0 and at most 1"),
        ({"ratio": True}, "^ratio: 'true' is no ratio"),
        ({"ratio": "9" * 5000}, "^ratio: '9{59}… is no ratio"),
        ({"ratio": 0.5, "include": "layer"}, r"^include: expected a list of texts, not 'layer'"),
        ({"ratio": 0.5, "head": "3"}, "^head: expected a list of texts, not '3'"),
        ({"ratio": 0.5, "head": ["heda"]}, "^head: the model has no module 'heda'"),
        ({"ratio": 0.5, "pins": [1]}, "^pins: expected a table, not a list"),
        ({"ratio": 0.5, "correct": "no"}, "^correct: expected True or False, not 'no'"),
        ({"ratio": 0.5, "min_rank": "2"}, "^min_rank: expected a whole number, not the text '2'"),
    ],
)
def test_an_argument_of_another_type_is_named(keywords, says):
    with refused(says) as caught:
        pelacli.decompose(net(), **keywords)
    assert len(str(caught.value)) < 200


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(3)


def inferred():
    with torch.inference_mode():
        return net()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: "vit_base", "is a str, not an nn.Module; pelacli.load"),
        (lambda: nn.Linear, "is the class itself"),
        (
            lambda: nn.DataParallel(net()),
            "DataParallel is a wrapper; give what it wraps, model.module",
        ),
        (lambda: torch.jit.script(net()), "compiled by TorchScript"),
        (lambda: Lazy(), "layer.weight has no shape yet; run the model once"),
        (lambda: inferred(), "0.weight was made under torch.inference_mode"),
    ],
)
def test_what_is_no_finished_module_is_refused(tmp_path, model, says):
    model = model()
    for call in (
        lambda: pelacli.decompose(model, ratio=0.5),
        lambda: pelacli.plan(model, ratio=0.5),
        lambda: pelacli.save(model, tmp_path / "a"),
        lambda: pelacli.load(tmp_path / "a", model=model),
    ):
        with refused(f"^model: .*{says}"):
            call()
    assert not (tmp_path / "a").exists()


def test_a_layer_alone_has_no_place_in_which_it_could_be_exchanged():
    with refused("^model: is itself a layer, Linear.*put it in nn.Sequential"):
        pelacli.decompose(nn.Linear(8, 8), ratio=0.5)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "is empty"),
        (3, "expected text or a Path, not a int"),
        ("\0", "holds a NUL character"),
        ("o" * 300, "File name too long"),
        (net(), "expected text or a Path, not a Sequential"),
    ],
    ids=["empty", "number", "nul", "long", "arguments exchanged"],
)
def test_a_path_that_is_none_is_refused(path, says):
    for call in (lambda: pelacli.load(path), lambda: pelacli.save(net(), path)):
        with refused(f"^path: .*{says}"):
            call()


# What the model is afterwards --------------------------------------------------------------------


def test_hooks_modes_and_what_is_frozen_stay():
    model = net().train()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    calls = []
    handle = model[0].register_forward_hook(lambda *args: calls.append(1))
    pelacli.decompose(model, ratio=0.5, scope="layers", batches=BATCHES)
    assert [m.training for m in model.children()] == [True, True, False, True]
    assert [p.requires_grad for p in model[0].parameters()] == [False, False, True]
    assert model[0].up.weight.dtype == torch.float32
    calls.clear()
    model(BATCHES[0])
    assert calls == [1]
    handle.remove()
    model(BATCHES[0])
    assert calls == [1]


def test_inside_inference_mode_a_model_is_made_that_can_be_trained():
    model = net()
    with torch.inference_mode():
        pelacli.decompose(model, ratio=0.5, scope="layers", batches=[b.clone() for b in BATCHES])
    model(BATCHES[0]).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


class Interrupting(nn.Module):
    """Raises at its nth call, as Ctrl-C would."""

    def __init__(self, inner, n):
        super().__init__()
        self.inner, self.left = inner, n

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.inner(x)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_ctrl_c_while_the_model_runs_leaves_it_as_it_was(n):
    """Calibration runs each batch once, and correction again."""
    model = Interrupting(net(), n).train()
    model.inner[0].weight.requires_grad_(False)
    before = snapshot(model)
    batches = [*BATCHES, BATCHES[0][:, :2]]
    with pytest.raises(KeyboardInterrupt):
        pelacli.decompose(model, ratio=0.5, scope="layers", batches=batches)
    assert snapshot(model) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
@pytest.mark.parametrize("where", ["choose", "_manifest", "fit", "exchange"])
def test_what_fails_in_the_middle_leaves_the_model_as_it_was(monkeypatch, where, error):
    def fail(*args):
        raise error

    model = net()
    before = snapshot(model)
    if where == "fit":
        monkeypatch.setattr(SolvedModel, "fit", fail)
    elif where == "exchange":  # the second layer's exchange fails, after the first one's
        put = nn.Module.__setattr__

        def put_one(self, name, value):
            if name == "2" and isinstance(value, find.LowRankLinear):
                raise error
            put(self, name, value)

        monkeypatch.setattr(nn.Module, "__setattr__", put_one)
    else:
        monkeypatch.setattr(factorising, where, fail)
    with pytest.raises(error):
        pelacli.decompose(model, ratio=0.5, scope="layers", batches=BATCHES)
    assert snapshot(model) == before


def test_a_plan_leaves_the_model_and_the_random_numbers_as_they_are():
    model = net()
    before, numbers = snapshot(model), torch.get_rng_state()
    planned = pelacli.plan(model, ratio=0.5, scope="layers", batches=BATCHES)
    assert snapshot(model) == before
    made = copy.deepcopy(model)
    assert pelacli.decompose(made, ratio=0.5, scope="layers", batches=BATCHES).ranks() == (
        planned.ranks()
    )
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize("call", [pelacli.plan, pelacli.decompose])
def test_a_budget_in_time_is_refused_before_any_sample_is_read(call):
    def batches():
        raise AssertionError("read")
        yield

    with pytest.raises(RequestError, match=r"unit: .*pela decompose --unit latency.*\"flops\""):
        call(nn.Sequential(nn.Linear(8, 8)), 0.5, unit="latency", batches=batches())
