"""The low-rank layer, its weight, and how layers are found and replaced."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pelacli.errors import RequestError
from pelacli.exports import dense as export_dense
from pelacli.lowrank import find, replace
from pelacli.lowrank.linear import LowRankLinear
from pelacli.lowrank.weight import FactoredWeight


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return LowRankLinear(8, 12, 3)


def test_forward_is_up_of_down(layer):
    x = torch.randn(2, 5, 8)
    dense = layer.up.weight @ layer.down.weight
    assert torch.allclose(layer(x), x @ dense.T + layer.up.bias, atol=1e-6)
    assert sum(p.numel() for p in layer.parameters()) == 3 * (8 + 12) + 12


def test_the_weight_runs_as_factors_and_counts_as_dense(layer):
    from torch.utils.flop_counter import FlopCounterMode

    x, weight = torch.randn(5, 8), layer.weight
    assert isinstance(weight, FactoredWeight)
    assert (weight.shape, weight.dtype, weight.device) == ((12, 8), x.dtype, x.device)
    with FlopCounterMode(display=False) as counter:
        y = F.linear(input=x, weight=weight, bias=layer.bias)
    assert counter.get_total_flops() == 2 * 5 * 3 * (8 + 12)
    assert torch.allclose(y, layer(x))
    dense = layer.up.weight @ layer.down.weight
    for ours, theirs in (
        (x @ weight.T, x @ dense.T), (weight * 2, dense * 2), (weight[2:4], dense[2:4]),
        (weight.t(), dense.t()), (torch.cat([weight, weight]), torch.cat([dense, dense])),
        (weight.float().sum(), dense.sum()),
    ):  # fmt: skip
        assert torch.allclose(ours, theirs, atol=1e-6)


class Fused(torch.autograd.Function):
    """x @ weight.T with a backward pass of its own, as kernels have that take a weight whole."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return g @ weight, g.T @ x


def test_gradients_reach_both_factors_either_way(layer):
    x = torch.randn(5, 8)
    grads = []
    ways = (
        lambda w: F.linear(x, w), lambda w: x @ w.T, lambda w: (w.T.T @ x.T).T,
        lambda w: Fused.apply(x, w), lambda w: Fused.apply(x, w.T.T), lambda w: x @ (w * 1).T,
    )  # fmt: skip
    for apply in ways:
        layer.zero_grad()
        apply(layer.weight).square().sum().backward()
        grads.append((layer.down.weight.grad.clone(), layer.up.weight.grad.clone()))
    for down, up in grads:
        assert down.abs().sum() > 0
        assert torch.allclose(down, grads[0][0], rtol=1e-4, atol=1e-5)
        assert torch.allclose(up, grads[0][1], rtol=1e-4, atol=1e-5)


def test_a_weight_taken_whole_is_differentiated_twice(layer):
    x = torch.randn(5, 8)
    both = []
    for weight in (layer.weight, layer.up.weight @ layer.down.weight):
        y = (weight * 1).tanh() @ x.T
        [first] = torch.autograd.grad(y.square().sum(), layer.down.weight, create_graph=True)
        both.append(
            torch.autograd.grad(first.square().sum(), layer.parameters(), allow_unused=True)
        )
    for ours, theirs in zip(*both, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


class Reads(nn.Module):
    """Applies the weight itself."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return F.linear(x, self.layer.weight)


def test_what_reads_a_weight_can_be_traced_and_exported(layer):
    module, x = Reads(layer).eval(), torch.randn(5, 8)
    assert torch.equal(torch.jit.trace(module, x)(x), module(x))
    assert torch.equal(torch.export.export(module, (x,)).module()(x), module(x))


def test_rank_zero_is_the_bias_alone():
    layer = LowRankLinear(8, 12, 0)
    x = torch.randn(3, 8)
    assert torch.equal(layer(x), layer.bias.expand(3, 12))
    assert layer.down.weight.shape == (0, 8)


class Odd(nn.Module):
    """Everything that is no plain layer of its own."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.tied = nn.Linear(8, 20, bias=False)
        self.tied.weight = self.words.weight
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.attention = nn.MultiheadAttention(8, 2)
        self.pixel = nn.Conv2d(8, 16, 1)
        self.patch = nn.Conv2d(8, 16, 4)
        self.free = nn.Linear(8, 16)
        self.again = self.free
        self.head = nn.Linear(16, 4)


def test_layers_are_found_each_with_its_reason():
    found = {la.name: la for la in find.find_layers(Odd(), head=["head"])}
    assert {name: la.reason for name, la in found.items()} == {
        "tied": "tied to words",
        "one": "its weight is shared",
        "two": "shares its weight with one",
        "attention.in_proj_weight": "fused in_proj",
        "attention.out_proj": "inside nn.MultiheadAttention",
        "pixel": "1×1 convolution",
        "free": None,
        "head": "output head",
    }
    assert found["attention.in_proj_weight"].shape == (24, 8)
    only = find.find_layers(Odd(), include=["head", "free"], exclude=["free"])
    assert [la.name for la in only if la.reason is None] == ["head"]


def test_a_subclass_with_its_own_forward_is_left_alone():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    (layer,) = find.find_layers(nn.Sequential(Scaled(4, 4)))
    assert layer.reason == "Scaled has a forward of its own"


class Spelt(nn.Linear):
    """As Falcon's: the same map in other words, its own bias after it."""

    def forward(self, x):
        product = x @ self.weight.T
        return product if self.bias is None else product + self.bias


class Rounded(nn.Linear):
    def forward(self, x):
        return super().forward(x.round())


@pytest.mark.parametrize("bias", [True, False])
def test_a_subclass_that_computes_the_same_is_a_layer(bias):
    for device in ("cpu", "meta"):
        layers = nn.Sequential(Spelt(4, 6, bias, device=device), Rounded(4, 6, device=device))
        same, other = find.find_layers(layers)
        assert same.reason is None
        assert other.reason == "Rounded has a forward of its own"


@pytest.mark.parametrize("form", ["x @ w.T", "x @ w.t()", "w @ x"])
def test_a_weight_runs_as_factors_in_every_form_it_is_applied_in(layer, form):
    from torch.utils.flop_counter import FlopCounterMode

    dense = (layer.up.weight @ layer.down.weight).detach()
    apply = {
        "x @ w.T": lambda w: torch.ones(5, 8) @ w.T,
        "x @ w.t()": lambda w: torch.mm(torch.ones(5, 8), w.t()),
        "w @ x": lambda w: w @ torch.ones(2, 8, 5),
    }
    flops = {"x @ w.T": 5, "x @ w.t()": 5, "w @ x": 10}
    with FlopCounterMode(display=False) as counter:
        ours = apply[form](layer.weight)
    assert counter.get_total_flops() == 2 * flops[form] * 3 * (8 + 12)
    assert torch.allclose(ours, apply[form](dense), atol=1e-5)
    ours.sum().backward()
    assert layer.down.weight.grad.abs().sum() > 0


def attend(x, q, k, v, out):
    """As WavLM: torch's function for attention, with the weights of four layers."""
    return F.multi_head_attention_forward(
        x, x, x, 8, 2, None, torch.zeros(24), None, None, False, 0.0, out.weight, out.bias,
        use_separate_proj_weight=True, need_weights=False,
        q_proj_weight=q.weight, k_proj_weight=k.weight, v_proj_weight=v.weight,
    )[0]  # fmt: skip


def test_torchs_attention_runs_the_factors_and_its_layers_are_seen():
    from pelacli.measure import flops as measure_flops

    torch.manual_seed(0)
    net = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
    net.forward = lambda x: attend(x, *net)
    x = torch.randn(5, 1, 8)
    spent = measure_flops.count(net, find.find_layers(net), lambda m: m(x))
    assert spent.tokens == dict.fromkeys("0123", 5)
    dense = net(x)
    factors = {}
    for name in "0123":
        U, S, V = torch.linalg.svd(net[int(name)].weight.detach())
        factors[name] = (S[:3, None] * V[:3], U[:, :3], net[int(name)].bias.detach())
    replace.replace(net, factors)
    saved = 4 * (2 * 5 * 8 * 8 - 2 * 5 * 3 * (8 + 8))
    assert measure_flops.count(net, [], lambda m: m(x)).total == spent.total - saved
    ours = net(x)
    export_dense.fold(net)
    assert torch.allclose(ours, net(x), atol=1e-5)
    assert not torch.allclose(ours, dense, atol=1e-3)


class Experts(nn.Module):
    """As transformers keeps those of Mixtral: two parameters, and no layer."""

    def __init__(self):
        super().__init__()
        self.num_experts = 3
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 4))
        self.scale = nn.Parameter(torch.ones(3, 4))
        self.table = nn.Parameter(torch.ones(1, 3, 4))


def test_fused_experts_are_named_and_stay_dense():
    (layer,) = find.find_layers(nn.ModuleDict({"mlp": Experts()}), include=["mlp"])
    assert (layer.name, layer.kind) == ("mlp.gate_up_proj", "experts")
    assert layer.reason == "experts fused in one parameter"
    assert layer.params == layer.module.gate_up_proj.numel()
    assert torch.equal(layer.weight, layer.module.gate_up_proj.flatten(0, 1))


class Listed(nn.Module):
    """As Mask2Former's heads: what runs is a plain list beside the registered modules."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)]
        for i, layer in enumerate(self.layers):
            self.add_module(str(i), layer)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_plain_list_of_layers_runs_what_was_put_there():
    model, x = Listed(), torch.randn(3, 4)
    before = list(model.layers)
    dense = model(x)
    zero = (torch.zeros(1, 4), torch.zeros(4, 1), None)
    with replace.replaced(model, {"2": zero}):
        assert torch.equal(model(x), torch.zeros(3, 4))
    assert model.layers == before
    assert torch.equal(model(x), dense)
    replace.replace(model, {"2": zero})
    assert model.layers[2] is model.get_submodule("2")
    export_dense.fold(model)
    assert isinstance(model.layers[2], nn.Linear)
    assert torch.equal(model(x), torch.zeros(3, 4))


def test_a_module_under_two_names_is_replaced_under_both():
    model = Odd()
    weight, bias = model.free.weight.detach(), model.free.bias.detach()
    factors = (torch.eye(8), weight.clone(), bias)
    replace.replace(model, {"free": factors})
    assert model.again is model.free
    assert isinstance(model.free, LowRankLinear)
    x = torch.randn(3, 8)
    assert torch.allclose(model.free(x), F.linear(x, weight, bias))


def test_what_is_replaced_for_a_while_comes_back():
    model = Odd().eval()
    before = dict(model.named_modules(remove_duplicate=False))
    factors = {"free": (torch.eye(8), model.free.weight.detach() * 2, None)}
    with replace.replaced(model, factors):
        assert isinstance(model.free, LowRankLinear)
        assert model.again is model.free
        assert not model.free.training
    assert dict(model.named_modules(remove_duplicate=False)) == before
    with pytest.raises(ZeroDivisionError), replace.replaced(model, factors):
        raise ZeroDivisionError
    assert dict(model.named_modules(remove_duplicate=False)) == before
    with (
        pytest.raises(RequestError, match="nope"),
        replace.replaced(model, {"nope": factors["free"]}),
    ):
        pass
    assert dict(model.named_modules(remove_duplicate=False)) == before


def test_fold_gives_the_dense_map_back(layer):
    model = nn.Sequential(layer)
    x = torch.randn(3, 8)
    before = model(x)
    export_dense.fold(model)
    assert type(model[0]) is nn.Linear
    assert torch.allclose(model(x), before, atol=1e-6)


def test_names_that_are_not_there():
    with pytest.raises(RequestError, match="nope: the model has no such layer"):
        replace.replace(nn.Sequential(), {"nope": (torch.ones(1, 2), torch.ones(2, 1), None)})
    with pytest.raises(RequestError, match="not a layer that can be factorised"):
        replace.replace_empty(Odd(), {"words": 3})
    with pytest.raises(RequestError, match="0: 10 pivots in a layer of 4 × 2"):
        replace.replace_empty(nn.Sequential(nn.Linear(2, 4)), {"0": 10}, {"0": "pivots"})


def test_weights_are_out_by_in_whatever_the_module():
    for layer in find.find_layers(Odd()):
        assert layer.weight.shape == layer.shape, layer.name
        assert not layer.weight.requires_grad


def test_attention_of_torch_can_be_calibrated_around():
    """Its fused weights are no ``weight``, and no call of them is seen, unlike its output's."""
    from pelacli.factorize import calibration
    from pelacli.measure import flops as measure_flops

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.last = nn.Linear(8, 8)

        def forward(self, x):
            return self.last(self.attention(x, x, x)[0]).mean(1)

    net, x = Net(), torch.randn(4, 5, 8)
    layers = find.find_layers(net)
    spent = measure_flops.count(net, layers, lambda m: m(x[:1]))
    assert spent.tokens == {"attention.out_proj": 5, "last": 5}
    assert spent.total == 2 * 5 * 8 * 8 * 5 + 2 * 2 * (5 * 5 * 8)  # in_proj, out_proj, last; bmm
    free = [layer for layer in layers if layer.reason is None]
    assert set(calibration.collect(net, free, [x], lambda m, b: m(b))) == {"last"}


def test_conv1d_becomes_a_low_rank_layer_of_the_same_map():
    from transformers.pytorch_utils import Conv1D

    model, x = nn.Sequential(Conv1D(12, 8)), torch.randn(3, 5, 8)
    (layer,) = find.find_layers(model)
    before = model(x)
    U, S, V = torch.linalg.svd(layer.weight, full_matrices=False)
    replace.replace(model, {"0": (S[:, None] * V, U, layer.bias)})
    assert isinstance(model[0], LowRankLinear)
    assert torch.allclose(model(x), before, atol=1e-5)
    export_dense.fold(model)
    assert torch.allclose(model(x), before, atol=1e-5)


def test_fold_reaches_every_name_and_rank_zero():
    model = nn.Module()
    model.a = LowRankLinear(8, 8, 2)
    model.b = model.a
    model.c = LowRankLinear(8, 4, 0)
    export_dense.fold(model)
    assert type(model.a) is nn.Linear
    assert model.b is model.a
    assert not model.c.weight.any()
    assert not find.low_rank_layers(model)


def test_what_is_replaced_keeps_type_mode_and_freedom():
    model = nn.Sequential(nn.Linear(8, 4).to(torch.bfloat16)).eval()
    model[0].weight.requires_grad_(False)
    factors = (torch.ones(2, 8), torch.ones(4, 2), None)
    replace.replace(model, {"0": factors})
    low = model[0]
    assert (low.training, low.bias, low.up.weight.dtype) == (False, None, torch.bfloat16)
    assert not low.down.weight.requires_grad
    assert low.down.in_features == 8
    assert "rank=2" in repr(low)


def test_a_model_of_factors_can_be_copied_and_its_weight_read(layer):
    import copy

    twin = copy.deepcopy(layer)
    assert torch.equal(twin.weight.clone(), layer.weight.clone())
    assert twin.up.weight is not layer.up.weight
    assert type(layer.weight.detach()) is torch.Tensor
    assert layer.weight.numel() == 96
    with torch.autocast("cpu", torch.bfloat16):
        assert F.linear(torch.randn(2, 8), layer.weight).dtype is torch.bfloat16
