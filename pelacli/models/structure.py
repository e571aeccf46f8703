"""What a model's modules tell: its blocks, the parameters not to decay, a sample to run it on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.models.opening import library
from pelacli.models.types import ImageInput, OpenModel, TextInput


def example(opened: OpenModel) -> Tensor | dict[str, Tensor]:
    """A batch of one sample, where the model is: what its FLOPs are counted at."""
    return library(opened.library).example(opened.module, opened.inputs)


def blocks(module: nn.Module) -> list[str]:
    """Names of the repeated blocks, in order: the default taps.

    A block is a child of an ``nn.ModuleList`` or ``nn.Sequential`` whose children hold at least
    two linear maps each and are all of one class (in a list they may differ, as attention and
    recurrence take turns in hybrids); the innermost such containers count, so Swin's stages give
    way to their blocks.
    """

    found = _innermost(module, all)
    # Or those of a stage whose other children are convolutions (EfficientFormer's last).
    return found or _innermost(module, any)


def _innermost(module: nn.Module, of: Callable[[Iterable[bool]], bool]) -> list[str]:
    """Children with two linear maps, in the innermost containers where ``of`` them (all, any)
    have so many."""

    def is_stack(container: nn.Module) -> bool:
        children = list(container.children())
        return (
            isinstance(container, nn.ModuleList | nn.Sequential)
            and len(children) >= 1
            and (isinstance(container, nn.ModuleList) or of is any or _of_one_class(children))
            and of(_matrices(child) >= 2 for child in children)
        )

    stacks = [(name, m) for name, m in module.named_modules() if is_stack(m)]
    innermost = [
        (name, m)
        for name, m in stacks
        if not any(inner is not m and is_stack(inner) for inner in m.modules())
    ]
    return [
        f"{name}.{i}" for name, m in innermost for i, c in m.named_children() if _matrices(c) >= 2
    ]


def _of_one_class(modules: Iterable[nn.Module]) -> bool:
    return len({type(m) for m in modules}) == 1


def _matrices(module: nn.Module) -> int:
    return sum(p.ndim == 2 for p in module.parameters())


def no_decay(module: nn.Module) -> set[str]:
    """Parameters that weight decay must leave alone, beyond biases and norms (1-D parameters):
    tables of positions, tokens of their own, temperatures, and what the model or a model in it
    lists."""
    listed: set[str] = set()
    for prefix, child in module.named_modules():
        names: Any = getattr(child, "no_weight_decay", set)
        listed |= {f"{prefix}.{name}".lstrip(".") for name in names()}
    tables = (
        "pos_embed",
        "position_embedding",
        "position_bias",
        "attention_bias",
        "rel_embeddings",
        "wpe.",
        "cls_token",
        "dist_token",
        "distillation_token",
        "mask_token",
        "detection_tokens",
        "reg_token",
        "register_token",
        "logit_scale",
        "temperature",
    )
    return listed | {
        name for name, _ in module.named_parameters() if any(part in name for part in tables)
    }


def num_classes(opened: OpenModel) -> int | None:
    """Outputs of the model's classifier; None for a model without one."""
    return library(opened.library).num_classes(opened.module)


def set_classes(opened: OpenModel, classes: int, seed: int) -> None:
    """Give the model a fresh head of so many classes, in place.

    Raises:
        RequestError: the model has no head that can be exchanged.
    """
    torch.manual_seed(seed)
    adapter = library(opened.library)
    adapter.set_classes(opened.module, classes)
    opened.config, opened.head = adapter.config(opened.module), adapter.head(opened.module)
    if isinstance(opened.inputs, ImageInput):  # the names were the old head's
        opened.inputs = replace(opened.inputs, labels=())


def with_head(
    opened: OpenModel,
    kind: str,
    seed: int,
    classes: Sequence[str] = (),
    pad_token_id: int | None = None,
) -> OpenModel:
    """The model as another of its family's classes, around the layers that it has: those that both
    classes have in the same shape are the very modules, low-rank ones too; the others are fresh.

    Args:
        kind: in transformers' words: "SequenceClassification", "MaskedLM", "CausalLM", or "" for
            the encoder alone.
        seed: of fresh weights.
        classes: names of the outputs, one each.
        pad_token_id: what padding looks like, where the model has no word of its own for it.

    Raises:
        RequestError: the model's library or family has no such class.
    """
    adapter = library(opened.library)
    build = getattr(adapter, "with_head", None)
    if build is None:
        raise RequestError(f"{opened.ref}: {opened.library} has no text models to put a head on")
    torch.manual_seed(seed)
    module = build(opened.module, kind, classes, pad_token_id)
    module.eval()
    inputs, before = adapter.inputs(module, None), opened.inputs
    if isinstance(inputs, TextInput) and isinstance(before, TextInput):
        inputs = replace(inputs, tokenizer=before.tokenizer, max_length=before.max_length)
    return replace(
        opened,
        module=module,
        config=adapter.config(module),
        head=adapter.head(module),
        inputs=inputs,
    )


def set_drop_path(module: nn.Module, rate: float, rule: str = "linear") -> None:
    """Stochastic depth; 0 takes it away.

    Args:
        rate: of the last block. With the "linear" rule it rises from 0 at the first block, with
            the "constant" rule it is the same in all.

    Both libraries leave an Identity called ``drop_path…`` where a model was built without;
    stochastic depth has no weights, so it can come and go.

    Raises:
        RequestError: the model has no place for it.
    """
    from timm.layers import DropPath

    blocks = [
        (parent, names)
        for parent in module.modules()
        if (names := [name for name, child in parent.named_children() if _drops(name, child)])
    ]
    if rate and not blocks:
        raise RequestError("drop_path: this model has no stochastic depth; leave it out, or 0")
    for depth, (parent, names) in enumerate(blocks):
        at = rate if rule == "constant" else rate * depth / max(1, len(blocks) - 1)
        for name in names:
            setattr(parent, name, DropPath(at) if at else nn.Identity())


def _drops(name: str, child: nn.Module) -> bool:
    """Whether a child is stochastic depth, or the place of it; transformers has a class of its own
    for each family."""
    known = isinstance(child, nn.Identity) or type(child).__name__.endswith("DropPath")
    return name.startswith("drop_path") and known
