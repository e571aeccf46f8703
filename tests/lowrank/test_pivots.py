"""The pivot form is the same map in fewer numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from pelacli.exports import dense
from pelacli.lowrank import pivoting
from pelacli.lowrank.pivot_linear import PivotLinear
from pelacli.lowrank.replace import in_form, replace, replace_empty

# (out, in): pivots on inputs, on either, on outputs
SHAPES = [(20, 12), (12, 12), (10, 24)]


def factors(shape, rank, *, bias=True, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    out, in_ = shape
    sizes = (rank, in_), (out, rank), (out,)
    down, up, b = (
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in sizes
    )
    return down, up, b if bias else None


def layer(shape, rank, **how):
    model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=how.get("bias", True)))
    known = factors(shape, rank, **how)
    replace(model, {"0": in_form(known, "pivots")})
    assert isinstance(model[0], PivotLinear)
    return model, known


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 5, 9])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_same_map_in_fewer_numbers(shape, rank, bias):
    (low,), (down, up, b) = layer(shape, rank, bias=bias)
    x = torch.randn(2, 7, shape[1])
    expected = F.linear(x, up @ down, b)
    torch.testing.assert_close(low(x), expected, rtol=1e-4, atol=1e-4)
    weights = low.down.weight.numel() + low.up.weight.numel()
    assert weights == rank * (sum(shape) - rank)
    biases = sum(p.numel() for p in low.parameters()) - weights
    assert biases == (shape[0] if bias else 0)
    ours, theirs = low.factors()
    torch.testing.assert_close(theirs @ ours, up @ down, rtol=1e-4, atol=1e-4)
    assert (low.bias is None) == (b is None)
    if b is not None:
        torch.testing.assert_close(low.bias, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_reads_the_weight_gets_the_same_and_pays_no_more(shape):
    (low,), _ = layer(shape, 4)
    x = torch.randn(3, shape[1])
    assert low.weight.shape == shape
    for apply in (
        lambda: F.linear(x, low.weight, low.bias),
        lambda: x @ low.weight.T + low.bias,
        lambda: F.linear(x, low.weight.detach() * 1.0, low.bias),
    ):
        torch.testing.assert_close(apply(), low(x), rtol=1e-4, atol=1e-4)
    for apply in (lambda: F.linear(x, low.weight), lambda: x @ low.weight.T, lambda: low(x)):
        with FlopCounterMode(display=False) as counter:
            apply()
        assert counter.get_total_flops() == 2 * 3 * 4 * (sum(shape) - 4)


@pytest.mark.parametrize("training", [True, False])
def test_reading_the_weight_to_apply_it_puts_nothing_together(training, monkeypatch):
    def put_together(*_):
        raise AssertionError("the factors were put together")

    for shape in SHAPES:
        (low,), _ = layer(shape, 4)
        low.train(training)
        x = torch.randn(3, shape[1])
        with monkeypatch.context() as patch:
            patch.setattr(type(low), "_factors_of", put_together)
            for y in (F.linear(x, low.weight, low.bias), x @ low.weight.T + low.bias):
                torch.testing.assert_close(y, low(x), rtol=1e-4, atol=1e-4)
                y.sum().backward()


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_stored_entries(shape):
    (low,), _ = layer(shape, 4)
    low.train()
    x = torch.randn(6, shape[1])
    names = [name for name, _ in low.named_parameters()]

    def gradients(y):
        return torch.autograd.grad(y.square().sum(), [low.get_parameter(n) for n in names])

    known = gradients(low(x))
    down, up = low.factors()
    for other in (F.linear(x, up @ down, low.bias), F.linear(x, low.weight, low.bias)):
        for new, expected in zip(gradients(other), known, strict=True):
            torch.testing.assert_close(new, expected, rtol=1e-3, atol=1e-3)
    down, up = low.factors()
    half_square = (up @ down).square().sum() / 2
    expected_up, expected_down = torch.autograd.grad(half_square, [low.up.weight, low.down.weight])
    new_up, new_down = low.decay_gradients()
    torch.testing.assert_close(new_up, expected_up, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(new_down, expected_down, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(96, 64), (64, 96)])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e20])
def test_no_entry_of_the_mixture_is_large(shape, scale):
    """So rounding errors of the pivots hardly grow."""
    down, up, _ = factors(shape, 40)
    down = down * torch.logspace(0, -6, 40)[:, None] * scale
    known = pivoting.pivots(down, up / scale, None)
    assert known.largest <= 1.2
    mix = known.down if shape[0] >= shape[1] else known.up
    assert float(mix.abs().max()) <= 1.2 * 1.001


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", ["zero", "one side zero", "dependent"])
def test_factors_that_span_less_than_their_rank_are_the_same_map(shape, case):
    down, up, bias = factors(shape, 6)
    if case == "zero":
        down, up = torch.zeros_like(down), torch.zeros_like(up)
    elif case == "one side zero":
        up = torch.zeros_like(up)
    else:
        down[3:], up[:, 4:] = down[:3], 0
    model = nn.Sequential(nn.Linear(shape[1], shape[0]))
    replace(model, {"0": in_form((down, up, bias), "pivots")})
    x = torch.randn(5, shape[1])
    torch.testing.assert_close(model(x), F.linear(x, up @ down, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [0, None])
def test_rank_zero_and_full_rank_have_pivots_too(shape, rank):
    (low,), (down, up, b) = layer(shape, rank := min(shape) if rank is None else rank)
    x = torch.randn(3, shape[1])
    torch.testing.assert_close(low(x), F.linear(x, up @ down, b), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(low.bias, b, rtol=1e-4, atol=1e-4)
    assert low.down.weight.numel() + low.up.weight.numel() == rank * (sum(shape) - rank)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_about_as_near_as_factors(shape, dtype):
    down, up, _ = factors(shape, 5)
    x = torch.randn(64, shape[1])
    expected = F.linear(x, up @ down)

    def error(known):
        model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False)).to(dtype)
        replace(model, {"0": known})
        assert all(p.dtype == dtype for p in model.parameters())
        with torch.no_grad():
            return float((model(x.to(dtype)).float() - expected).norm() / expected.norm())

    assert error(in_form((down, up, None), "pivots")) < 4 * error((down, up, None))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_filled_from_a_state_and_folds_to_the_dense_layer(shape):
    model, (down, up, bias) = layer(shape, 4)
    empty = nn.Sequential(nn.Linear(shape[1], shape[0])).to("meta")
    replace_empty(empty, {"0": 4}, {"0": "pivots"})
    empty.load_state_dict(model.state_dict(), assign=True)
    x = torch.randn(3, shape[1])
    assert torch.equal(empty(x), model(x))
    dense.fold(model)
    assert type(model[0]) is nn.Linear
    torch.testing.assert_close(model(x), F.linear(x, up @ down, bias), rtol=1e-4, atol=1e-4)


def test_a_transposed_layer_folds_to_its_own_kind():
    model = nn.Sequential(Conv1D(20, 12))
    x = torch.randn(3, 12)
    replace(model, {"0": in_form(factors((20, 12), 4), "pivots")})
    expected = model(x)
    dense.fold(model)
    assert type(model[0]) is Conv1D
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_frozen_biases_modes_and_hooks_are_the_dense_layers(shape):
    model = nn.Sequential(nn.Linear(shape[1], shape[0])).eval()
    model[0].bias.requires_grad_(False)
    seen = []
    model[0].register_forward_hook(lambda *call: seen.append(1))
    replace(model, {"0": in_form(factors(shape, 4), "pivots")})
    model(torch.randn(2, shape[1]))
    assert seen == [1]
    assert not model[0].training
    flags = {name: p.requires_grad for name, p in model[0].named_parameters()}
    assert all(flag == name.endswith("weight") for name, flag in flags.items())


def test_it_is_traced_and_compiled():
    for shape in SHAPES:
        model, _ = layer(shape, 4)
        x = torch.randn(3, shape[1])
        exported = torch.export.export(model.eval(), (x,)).module()
        torch.testing.assert_close(exported(x), model(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_goes_to_onnx_as_it_is(shape, tmp_path):
    """Low rank stays low rank, for any number of samples."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    model, _ = layer(shape, 4)
    x = torch.randn(3, 5, shape[1])
    torch.onnx.export(
        model.eval(), (x,), tmp_path / "m.onnx", dynamo=True, verbose=False,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )  # fmt: skip
    written = onnx.load(tmp_path / "m.onnx")
    stored = sum(n for t in written.graph.initializer if (n := len(t.raw_data) // 4))
    assert stored < shape[0] * shape[1]
    more = torch.cat((x, x))
    [y] = ReferenceEvaluator(written).run(None, {written.graph.input[0].name: more.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(more).detach(), rtol=1e-4, atol=1e-4)
