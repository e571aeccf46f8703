"""transformers' models of semantic segmentation: SegFormer, UperNet, BEiT, DPT and their kin."""

from __future__ import annotations

from typing import Any

from torch import nn

from pelacli.errors import RequestError


def segments(module: nn.Module) -> bool:
    """Whether the module's logits are a map of classes."""
    return "SemanticSegmentation" in type(module).__name__


def set_classes(module: nn.Module, num_classes: int) -> None:
    """Give each head a fresh last layer, which has an output for each class.

    Raises:
        RequestError: there is no such layer.
    """
    segmenter: Any = module
    names = [name for head in _heads(segmenter) if (name := _last(segmenter, head))]
    if not names:
        raise RequestError(f"{type(module).__name__}: has no classifier to exchange")
    for name in names:
        parent, _, child = name.rpartition(".")
        old = segmenter.get_submodule(name)
        setattr(segmenter.get_submodule(parent), child, _fresh(old, num_classes))
    segmenter.num_labels = segmenter.config.num_labels = num_classes


def _heads(module: Any) -> list[str]:
    base = getattr(module, "base_model", None)
    inner = {"backbone"} if base is module else set()
    return [n for n, m in module.named_children() if m is not base and n not in inner]


def _last(module: Any, head: str) -> str | None:
    """Name of the last layer of a head with an output for each class."""
    names = [
        f"{head}.{name}".rstrip(".")
        for name, m in module.get_submodule(head).named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and _outputs(m) == module.config.num_labels
    ]
    return names[-1] if names else None


def _outputs(layer: nn.Conv2d | nn.Linear) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _fresh(old: nn.Conv2d | nn.Linear, outputs: int) -> nn.Module:
    bias = old.bias is not None
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, outputs, bias)
    return nn.Conv2d(old.in_channels, outputs, old.kernel_size[0], padding="same", bias=bias)
