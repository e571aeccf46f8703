"""The models that `gpu.py` times, with random weights, and what is made of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import timm
import torch
import transformers
from torch import Tensor, nn

from pelacli.errors import InfeasibleError
from pelacli.lowrank import find, replace
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.pivot_linear import PivotLinear
from pelacli.measure import flops, latency, layer_times, layer_times_cache, model_times
from pelacli.measure.model_times import ModelTimes
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget
from pelacli.ranks.forms import Form
from pelacli.ranks.plan import Plan
from pelacli.ranks.size import ModelSize
from pelacli.ranks.spectrum import Spectrum
from pelacli.steps.latency import conditions_of
from pelacli.system import devices
from pelacli.train.compilation import compiled_blocks

HALF = Fraction(1, 2)
TIME = Fraction(3, 5)  # of the dense model's, that a plan by time is made for
EIGHT = 8  # of which pela's ranks are multiples in large layers
TINY_VIT: dict[str, Any] = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
TINY_LLAMA: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": 100,
}  # fmt: skip
# Configurations as published with the checkpoints.
LLAMAS: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
        "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    "llama-1.1b": {
        "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4, "intermediate_size": 5632, "vocab_size": 32000,
        "max_position_embeddings": 2048,
    },
}  # fmt: skip
VITS = {"vit_base": "vit_base_patch16_224", "vit_large": "vit_large_patch16_224"}


@dataclass
class Subject:
    """A dense model on the device in bf16, in eval mode, and a batch for it.

    Attributes:
        head: names of the modules that stay dense.
        inputs: of the model's forward pass.
        sample: of these, one.
    """

    module: nn.Module
    head: frozenset[str]
    inputs: Tensor
    sample: Tensor

    @property
    def layers(self) -> list[Layer]:
        """Those that may be factorised."""
        layers = find.find_layers(self.module, head=self.head)
        return [layer for layer in layers if layer.reason is None]


def vision(name: str, batch: int, device: str, *, tiny: bool) -> Subject:
    """A vision Transformer of timm's and a batch of images."""
    with torch.device(device):
        module = timm.create_model(VITS[name], **(TINY_VIT if tiny else {})).eval()
    side = TINY_VIT["img_size"] if tiny else 224
    images = torch.randn(batch, 3, side, side).to(device, torch.bfloat16)
    return Subject(module.to(device, torch.bfloat16), frozenset({"head"}), images, images[:1])


def language(name: str, shape: tuple[int, int], device: str, *, tiny: bool) -> Subject:
    """A Llama and a batch of tokens, of shape (texts, tokens)."""
    config = transformers.LlamaConfig(**(TINY_LLAMA if tiny else LLAMAS[name]), use_cache=False)
    with torch.device(device):
        module = transformers.LlamaForCausalLM(config)
    ids = torch.randint(config.vocab_size, shape, device=device)
    return Subject(module.to(torch.bfloat16).eval(), frozenset({"lm_head"}), ids, ids[:1])


def uniform_ranks(layers: list[Layer], form: str, multiple: int) -> dict[str, int]:
    """Layer → the largest rank, a multiple, at which it stores at most half of its weight."""
    ranks = {}
    for layer in layers:
        side, most = sum(layer.shape), int(HALF * layer.params)
        rank = most // side
        if form == "pivots":  # r (side − r) ≤ most
            rank = int((side - (side**2 - 4 * most) ** 0.5) / 2)
        ranks[layer.name] = max(1, rank // multiple * multiple)
    return ranks


def low_rank(subject: Subject, ranks: Mapping[str, int], forms: Mapping[str, Form]) -> nn.Module:
    """A copy of the subject's module with these ranks and random factors."""
    module = copy.deepcopy(subject.module)
    replace.replace_empty(module, ranks, forms)
    for layer in find.low_rank_layers(module).values():
        if isinstance(layer, PivotLinear):
            layer.order.copy_(torch.randperm(len(layer.order)))
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.02)
    return module.eval()


@dataclass(frozen=True)
class Made:
    """A low-rank model, and what a row says of how it was made."""

    module: nn.Module
    facts: Mapping[str, Any]


def factors_at_half(subject: Subject, compiled: bool) -> Made:
    """Each layer at half its weights in factors, ranks in eights."""
    return Made(low_rank(subject, uniform_ranks(subject.layers, "factors", EIGHT), {}), {})


def pivots_at_half(subject: Subject, compiled: bool) -> Made:
    """Each layer at half its weights in pivots, ranks in eights."""
    ranks = uniform_ranks(subject.layers, "pivots", EIGHT)
    return Made(low_rank(subject, ranks, dict.fromkeys(ranks, "pivots")), {})


def reference(subject: Subject, compiled: bool) -> Made:
    """The paper's ranks: each layer at half its weights in factors, to the rank."""
    return Made(low_rank(subject, uniform_ranks(subject.layers, "factors", 1), {}), {})


def planned_by_time(subject: Subject, compiled: bool) -> Made:
    """A plan for `TIME` of the dense model's time, or what is nearest to it that can be had.

    The layers are timed eager for compiled models too: each is one or two products, which
    compilation leaves alone, and compiling a few hundred of them would take all the time there is.
    """
    device = devices.home(subject.module)
    layers, samples = subject.layers, len(subject.inputs)
    cost = flops.count(subject.module, layers, lambda m: m(subject.sample))
    cases = [model_times.case_of(layer, cost, samples) for layer in layers]
    conditions = conditions_of(device, "bf16", False)
    known = layer_times_cache.times(
        [case for case in cases if case is not None], list(layer_times.FORMS), conditions
    )
    tables = model_times.tables(layers, cost, samples, known, device.type)
    with compiled_blocks(subject.module, on=compiled):
        [timing] = latency.side_by_side(
            [subject.module], subject.inputs, lambda m, x: m(x), seconds=0.5, device=device
        )
    times = ModelTimes(conditions, samples, round(1e6 * timing.median), tables)
    plan = _plan(layers, times)
    facts = {
        "planned": plan.used / plan.total if plan.used and plan.total else None,
        "dense_layers": sum(layer.rank is None for layer in plan.layers.values()),
    }
    return Made(low_rank(subject, plan.ranks(), plan.forms()), facts)


def _plan(layers: list[Layer], times: ModelTimes) -> Plan:
    """Energies fall as those of trained weights do, with the square of the number."""
    spectra = []
    for layer in layers:
        energies = np.arange(1, min(layer.shape) + 1, dtype=np.float64) ** -2
        spectra.append(Spectrum(layer.name, layer.shape, energies))
    size = ModelSize(fixed_latency=times.fixed)

    def at(ratio: Fraction) -> Plan:
        budget = Budget(ratio=ratio, unit="latency", form="auto")
        return planner.plan(spectra, budget, size, times.tables)

    try:
        return at(TIME)
    except InfeasibleError as error:
        return at(Fraction(error.smallest or 1))


# name → makes the low-rank model of the dense subject; told whether both will run compiled
VARIANTS: dict[str, Callable[[Subject, bool], Made]] = {
    "reference": reference,
    "factors": factors_at_half,
    "pivots": pivots_at_half,
    "latency": planned_by_time,
}
