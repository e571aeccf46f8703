"""What the factors of low-rank layers are trained with: their rate, their decay."""

import copy
import json

import pytest
import torch
import transformers
from torch import nn

from pelacli.errors import RequestError
from pelacli.lowrank.linear import LowRankLinear
from pelacli.recipe.training import Train
from pelacli.train import optim
from pelacli.train.loop import Objective, RunOptions, fit


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.low, self.norm = LowRankLinear(6, 5, 3), nn.LayerNorm(5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.norm(self.low(x)))


class Batches:
    """Four batches of noise an epoch."""

    def __len__(self):
        return 4

    def __iter__(self):
        generator = torch.Generator().manual_seed(1)
        for _ in range(4):
            yield {"inputs": torch.randn(8, 6, generator=generator)}

    def set_epoch(self, epoch, start=0):
        pass

    def close(self):
        pass


def settings(**changed):
    return Train(**({"lr": 0.01, "min_lr": 0.0, "weight_decay": 0.3, "log_every": 1} | changed))


def groups(**changed):
    """Name → (decay, factor of the learning rate)."""
    net = Net()
    made = optim.optimizer(net, settings(**changed))
    names = {id(p): n for n, p in net.named_parameters()}
    found = {
        names[id(p)]: (group["weight_decay"], group.get("lr_scale", 1.0))
        for group in made.param_groups
        for p in group["params"]
    }
    assert set(found) == set(names.values())
    return found


FACTORS = {"low.down.weight", "low.up.weight"}


@pytest.mark.parametrize(("rule", "decays"), [("each", True), ("product", False), ("none", False)])
def test_which_weights_the_optimizer_decays(rule, decays):
    decayed = {name for name, (decay, _) in groups(factor_decay=rule).items() if decay}
    assert decayed == {"head.weight"} | (FACTORS if decays else set())


def test_factors_have_a_rate_of_their_own():
    found = groups(factor_lr=0.1)
    assert {name for name, (_, scale) in found.items() if scale == 0.1} == FACTORS
    assert found["low.up.bias"] == (0.0, 1.0)  # no factor, but the layer's bias
    assert found["head.weight"] == (0.3, 1.0)
    assert all(scale == 1.0 for _, scale in groups().values())


@pytest.mark.parametrize("sched", ["cosine", "none"])
def test_the_first_step_of_a_factor_is_shorter_by_factor_lr(tmp_path, sched):
    """Adam's first step is lr in every entry."""

    def moved(**changed):
        net, start = Net(), Net()
        fit(
            net,
            Objective(lambda m, b, done: {"x": m(b["inputs"]).square().mean()}),
            Batches(),
            settings(steps=1, weight_decay=0.0, sched=sched, **changed),
            RunOptions(device="cpu", output=tmp_path),
        )
        now = dict(net.named_parameters())
        return {n: (now[n] - p).abs().median().item() for n, p in start.named_parameters()}

    plain, slow = moved(), moved(factor_lr=0.1)
    for name in plain:
        factor = 0.1 if name in FACTORS else 1.0
        assert slow[name] == pytest.approx(factor * plain[name], rel=1e-2), name
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").open()]
    assert rates == pytest.approx([0.01])  # the recipe's, not the factors'


def test_decay_of_the_product_is_a_step_along_its_gradient():
    net, wanted = Net(), Net()
    made = optim.optimizer(net, settings(factor_decay="product", lr=0.5))
    optim.decay_products(net, made, 0.3)
    up, down = wanted.low.up.weight, wanted.low.down.weight
    (0.3 / 2 * (up @ down).square().sum()).backward()
    for ours, theirs in ((net.low.up, up), (net.low.down, down)):
        torch.testing.assert_close(ours.weight, theirs - 0.5 * theirs.grad)
    assert torch.equal(net.head.weight, wanted.head.weight)


def test_decay_of_the_product_shrinks_large_singular_values_most():
    """And with factor_decay = "product" it is what a run does, beside no gradient at all."""
    net, layer = Net(), LowRankLinear(6, 5, 2, bias=False)
    with torch.no_grad():  # singular values 4 and 1, half on each side
        layer.up.weight.copy_(torch.diag(torch.tensor([2.0, 1.0, 0, 0, 0]))[:, :2])
        layer.down.weight.copy_(torch.diag(torch.tensor([2.0, 1.0, 0, 0, 0, 0]))[:2])
    net.low = copy.deepcopy(layer)
    made = settings(steps=1, opt="sgd", sched="none", factor_decay="product")
    objective = Objective(lambda m, b, done: {"x": 0 * m(b["inputs"]).sum()})
    fit(net, objective, Batches(), made, RunOptions(device="cpu"))
    values = torch.linalg.svdvals((net.low.up.weight @ net.low.down.weight).detach())[:2]
    rate = 0.01 * 0.3  # √σ ← √σ − rate·√σ·σ on both sides
    wanted = [(2 * (1 - rate * 4)) ** 2, (1 - rate) ** 2]
    assert values.tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("family", "spared"),
    [
        ("bert", {"embeddings.position_embeddings.weight"}),
        ("gpt2", {"wpe.weight"}),
        ("t5", {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"}),
        ("clip", {"text_model.embeddings.position_embedding.weight",
                  "vision_model.embeddings.position_embedding.weight"}),
        ("dinov2", {"embeddings.cls_token", "embeddings.mask_token",
                    "embeddings.position_embeddings"}),
        ("swin", {"encoder.layers.0.blocks.0.attention.relative_position_bias"
                  ".relative_position_bias_table"}),
    ],
)  # fmt: skip
def test_tables_of_positions_and_tokens_never_decay(family, spared):
    config = transformers.AutoConfig.for_model(family)
    with torch.device("meta"):
        module = transformers.AutoModel.from_config(config)
    made = optim.optimizer(module, settings())
    decays = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    named = dict(module.named_parameters())
    kept = {name for name, p in named.items() if p.ndim > 1 and not decays[id(p)]}
    if family == "swin":  # one in each block
        kept = {name for name in kept if ".layers.0.blocks.0." in name}
    assert kept == spared
    assert all(not decays[id(p)] for p in named.values() if p.ndim < 2)


def test_layer_decay_is_refused_where_it_would_do_nothing():
    with pytest.raises(RequestError, match="layer_decay: the model does not say"):
        optim.optimizer(Net(), settings(layer_decay=0.5))
