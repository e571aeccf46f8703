"""Which parameters do not decay, stochastic depth, and whether dropout is on."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pelacli.errors import RequestError


def no_decay(module: nn.Module) -> set[str]:
    """Names of the parameters that do not decay, beside biases and norms (1-D parameters): tables
    of positions, special tokens, temperatures, and those that the model or a module of it lists."""
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
    """Give the model's blocks stochastic depth; a rate of 0 removes it.

    Both libraries put an Identity called ``drop_path…`` into a model that is built without it.
    Stochastic depth has no weights, so one can be replaced by the other.

    Args:
        rate: of the last block. With the "linear" rule it rises from 0 at the first block, with
            the "constant" rule it is the same in all.

    Raises:
        RequestError: the model has no modules of that name.
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
    """Whether a child is stochastic depth or the Identity in its place. transformers has another
    class of it in each family."""
    known = isinstance(child, nn.Identity) or _is_drop_path(child)
    return name.startswith("drop_path") and known


def _is_drop_path(module: nn.Module) -> bool:
    return type(module).__name__.endswith("DropPath")


def enter_training(module: nn.Module, *, dropout: bool, drop_path: bool) -> None:
    """Put a module into training mode, in which dropout may stay off.

    Without dropout all modules but batch norms compute what they compute at inference. Many
    families have no module for dropout (they call its function while their own module is in
    training mode), so it is the mode that decides, and not a list of modules.

    Args:
        dropout: whether dropout and stochastic depth are on, as the model was built.
        drop_path: whether stochastic depth is on in any case.
    """
    module.train()
    if dropout:
        return
    for child in module.modules():
        is_stochastic_depth = drop_path and _is_drop_path(child)
        child.training = is_stochastic_depth or isinstance(child, _BatchNorm)
