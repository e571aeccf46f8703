"""Find the linear maps of a model, each with the reason why it stays dense, if any."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from torch import nn

from pelacli.errors import RequestError
from pelacli.lowrank.layer import Layer, describe, experts
from pelacli.lowrank.linear import LowRankLinear


def find_layers(
    module: nn.Module,
    *,
    head: Collection[str] = (),
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
) -> list[Layer]:
    """Every linear map of ``module`` in module order, each with the reason why not, if any.

    Args:
        head: names of the output head's modules; they stay dense.
        include, exclude: regular expressions, searched (``re.search``) in module names. With
            ``include`` only what matches is factorised, and the head is no exception then;
            ``exclude`` has the last word.
    """
    include, exclude = list(include), list(exclude)
    embeddings = {
        id(m.weight): name for name, m in module.named_modules() if isinstance(m, nn.Embedding)
    }
    # It hands its weights to one fused function, where low-rank factors would be multiplied out.
    fused = {id(m.out_proj) for m in module.modules() if isinstance(m, nn.MultiheadAttention)}
    owners: dict[int, str] = {}
    found: list[Layer] = []
    for name, child in module.named_modules():
        found += [
            Layer(f"{name}.{part}", child, (p.shape[0] * p.shape[1], p.shape[2]), "experts", why)
            for part, p, why in experts(child)
        ]
        described = describe(child)
        if described is None:
            continue
        kind, shape, reason = described
        name = f"{name}.in_proj_weight" if kind == "in_proj" else name
        weight = getattr(child, "in_proj_weight" if kind == "in_proj" else "weight", None)
        if reason is None and id(child) in fused:
            reason = "inside nn.MultiheadAttention"
        if reason is None and id(weight) in embeddings:
            reason = f"tied to {embeddings[id(weight)]}"
        if reason is None and owners.setdefault(id(weight), name) != name:
            reason = f"shares its weight with {owners[id(weight)]}"
        if reason is None and include and not any(re.search(p, name) for p in include):
            reason = "not included"
        if reason is None and not include and _within(name, head):
            reason = "output head"
        if reason is None and any(re.search(p, name) for p in exclude):
            reason = "excluded"
        found.append(Layer(name, child, shape, kind, reason))
    # The first owner of a shared weight must stay dense too, or the tie would be cut silently.
    shared = {f.reason.removeprefix("shares its weight with ") for f in found if f.reason}
    return [
        Layer(f.name, f.module, f.shape, f.kind, "its weight is shared")
        if f.reason is None and f.name in shared
        else f
        for f in found
    ]


def low_rank_layers(module: nn.Module) -> dict[str, LowRankLinear]:
    """Name → layer for every `LowRankLinear` in the module."""
    return {n: m for n, m in module.named_modules() if isinstance(m, LowRankLinear)}


def linear_modules(module: nn.Module) -> dict[str, nn.Module]:
    """Name → the very module, of all linear maps, dense and low-rank."""
    layers = {layer.name: layer.module for layer in find_layers(module)}
    return layers | dict(low_rank_layers(module))


def submodule(module: nn.Module, name: str) -> nn.Module:
    """``module.get_submodule`` with an error that names the layer."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise RequestError(f"{name}: the model has no such layer") from None


def _within(name: str, roots: Collection[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)
