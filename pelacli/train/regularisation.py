"""What weight decay leaves alone, and stochastic depth."""

from __future__ import annotations

from typing import Any

from torch import nn

from pelacli.errors import RequestError


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
