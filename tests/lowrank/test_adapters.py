"""Adapters of peft on low-rank layers of both forms, in models that call their layers and in those
that read their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from generated_text import save_model
from torch import nn

import pelacli
from pelacli.artefact import loading
from pelacli.errors import RequestError
from pelacli.lowrank import find

peft = pytest.importorskip("peft")
IDS = torch.arange(3, 13)[None]
TARGETS = {"both parts": ["up", "down"], "one part": ["up"], "all": "all-linear"}


def low_rank(form: str, path: Path) -> nn.Module:
    model = loading.open(str(save_model("llama", "CausalLM", path)))[0].module
    pelacli.decompose(model, 0.6, scope="layers", form=form)
    return model


def adapted(model: nn.Module, targets, **how) -> nn.Module:
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=targets, **how)
    return peft.get_peft_model(model, config)


def train_a_step(model: nn.Module, loss, rate: float = 1.0) -> None:
    model.train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(2):  # the first step moves one matrix of each adapter, the second both
        optimiser.zero_grad()
        loss(model).backward()
        optimiser.step()
    model.eval()


def language_loss(model):
    return model(input_ids=IDS, labels=IDS).loss


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("form", "targets"),
    [("factors", "both parts"), ("pivots", "one part"), ("pivots", "all")],
)
def test_lora_trains_saves_loads_and_merges(form, targets, tmp_path):
    base = low_rank(form, tmp_path / "m")
    pelacli.save(base, tmp_path / "a")
    before = logits(base)
    model = adapted(base, TARGETS[targets], lora_dropout=0.1)
    train_a_step(model, language_loss)
    trained = logits(model)
    assert not torch.allclose(trained, before, atol=1e-3)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
    model.save_pretrained(tmp_path / "adapter")

    fresh = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    torch.testing.assert_close(logits(again), trained)

    merged = again.merge_and_unload()
    torch.testing.assert_close(logits(merged), trained, rtol=1e-4, atol=1e-4)
    forms = {layer.form for layer in find.low_rank_layers(merged).values()}
    assert forms == {form}
    merged.save_pretrained(tmp_path / "merged")
    for opened in (
        pelacli.load(tmp_path / "merged"),
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged"),
    ):
        torch.testing.assert_close(logits(opened), logits(merged))


class Reader(nn.Module):
    """Applies a layer as some models do that read its weight."""

    def __init__(self, layer: nn.Module, way: str) -> None:
        super().__init__()
        self.layer, self.way = layer, way

    def forward(self, x):
        weight, bias = self.layer.weight, self.layer.bias
        if self.way == "F.linear":
            return F.linear(x, weight, bias)
        y = x @ weight.T if self.way == "transposed" else F.linear(x, weight * 1.0)
        return y if bias is None else y + bias


@pytest.mark.parametrize("form", ["factors", "pivots"])
@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
@pytest.mark.parametrize("way", ["F.linear", "transposed", "whole"])
@pytest.mark.parametrize("bias", [True, False])
def test_whoever_reads_an_adapted_weight_gets_the_adapter_too(form, shape, way, bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=bias))
    pelacli.decompose(model, 0.7, form=form)
    called = adapted(model, ["up", "down"])
    layer = next(iter(find.low_rank_layers(called).values()))
    read = Reader(layer, way)
    x = torch.randn(5, shape[1])
    start = layer(x)
    train_a_step(called, lambda m: m(x).square().mean(), rate=0.1)
    by_calling = layer(x)
    assert not torch.allclose(by_calling, start, atol=1e-3)
    torch.testing.assert_close(read.eval()(x), by_calling, rtol=1e-4, atol=1e-5)

    def gradients(y):
        return torch.autograd.grad(
            y.square().sum(), [p for p in called.parameters() if p.requires_grad]
        )

    read.train()
    for ours, theirs in zip(gradients(read(x)), gradients(layer(x)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    down, up = layer.factors()
    torch.testing.assert_close(F.linear(x, up @ down, layer.bias), by_calling, rtol=1e-4, atol=1e-4)


def test_a_model_that_reads_its_weights_trains_its_adapters():
    """BEiT's queries, keys and values."""
    torch.manual_seed(0)
    model = timm.create_model("beit_base_patch16_224", img_size=32, embed_dim=32, depth=1,
                              num_heads=2, num_classes=3).eval()  # fmt: skip
    pelacli.decompose(model, 0.6, scope="layers", include=["qkv"])
    model = adapted(model, ["up", "down"])
    x = torch.randn(2, 3, 32, 32)
    train_a_step(model, lambda m: m(x).square().mean())
    moved = [p for n, p in model.named_parameters() if "lora_B" in n]
    assert moved
    assert all(p.abs().sum() > 0 for p in moved)
    with torch.no_grad():
        trained = model(x)
        torch.testing.assert_close(model.merge_and_unload()(x), trained, rtol=1e-4, atol=1e-4)


def test_an_adapter_that_is_not_merged_is_not_left_out(tmp_path):
    base = low_rank("pivots", tmp_path / "m")
    model = adapted(base, ["up", "down"])
    for module in (model, base):
        with pytest.raises(RequestError, match=r"has an adapter of peft, .*merge_and_unload"):
            pelacli.save(module, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_layer_itself_is_no_target_and_peft_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"Target module PivotLinear[^`]*is not supported"):
        adapted(low_rank("pivots", tmp_path / "m"), ["q_proj"])
