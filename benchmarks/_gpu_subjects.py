"""The models that `gpu.py` times, with random weights, and what is made of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import timm
import torch
import transformers
from torch import Tensor, nn

from pelacli.lowrank import find, replace
from pelacli.lowrank.layer import Layer

HALF = Fraction(1, 2)
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


def low_rank(subject: Subject, ranks: Mapping[str, int], forms: Mapping[str, str]) -> nn.Module:
    """A copy of the subject's module with these ranks and random factors."""
    module = copy.deepcopy(subject.module)
    replace.replace_empty(module, ranks)
    for layer in find.low_rank_layers(module).values():
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.02)
    return module.eval()


# name of a variant → makes it of the dense subject
Variant = Callable[[Subject], nn.Module]


def factors_at_half(subject: Subject) -> nn.Module:
    """Each layer at half its weights in factors, ranks in eights."""
    return low_rank(subject, uniform_ranks(subject.layers, "factors", EIGHT), {})


def reference(subject: Subject) -> nn.Module:
    """The paper's ranks: each layer at half its weights in factors, to the rank."""
    return low_rank(subject, uniform_ranks(subject.layers, "factors", 1), {})


VARIANTS: dict[str, Variant] = {"reference": reference, "factors": factors_at_half}
