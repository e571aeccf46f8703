"""Find the linear maps of a model, each with the reason why it stays dense, if any."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from pelacli.errors import RequestError
from pelacli.lowrank.layer import Layer, describe, experts
from pelacli.lowrank.linear import LowRankLinear
from pelacli.ranks import reasons


@dataclass(frozen=True)
class Selection:
    """Which layers may be factorised.

    Attributes:
        head: names of the output head's modules; they stay dense.
        include, exclude: regular expressions, searched (``re.search``) in module names. With
            ``include`` only what matches is factorised, and the head is no exception then;
            ``exclude`` has the last word.
    """

    head: Collection[str] = ()
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def reason_against(self, name: str) -> str | None:
        """Why the layer of this name is not selected; None where it is."""
        if self.include and not any(re.search(pattern, name) for pattern in self.include):
            return reasons.NOT_INCLUDED
        if not self.include and _within(name, self.head):
            return reasons.OUTPUT_HEAD
        if any(re.search(pattern, name) for pattern in self.exclude):
            return reasons.EXCLUDED
        return None


def find_layers(
    module: nn.Module,
    *,
    head: Collection[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> list[Layer]:
    """Every linear map of ``module`` in module order, each with the reason why it stays dense, if
    any. Arguments as in `Selection`."""
    selection = Selection(head, include, exclude)
    shared = _SharedWeights(module)
    layers = []
    for layer in _linear_maps(module):
        reason = layer.reason or shared.reason_against(layer)
        layers.append(replace(layer, reason=reason or selection.reason_against(layer.name)))
    # The first owner of a shared weight must stay dense too, or the tie would be cut silently.
    return [
        replace(layer, reason=reasons.SHARED)
        if layer.reason is None and layer.name in shared.owners_of_several
        else layer
        for layer in layers
    ]


def find_dense(
    module: nn.Module, selection: Selection, ref: str, flag_prefix: str = ""
) -> list[Layer]:
    """`find_layers` of a dense model that can be factorised.

    Args:
        ref: what the user calls the model, for messages.
        flag_prefix: stands before "include" and "exclude" in messages ("--" on a command line).

    Raises:
        RequestError: the model is low-rank already, none of its layers may be factorised, or an
            expression matches nothing.
    """
    if low_rank_layers(module):
        raise RequestError(f"{ref}: is low-rank already; decompose the dense model")
    _check_patterns(module, selection.include, f"{flag_prefix}include")
    _check_patterns(module, selection.exclude, f"{flag_prefix}exclude")
    layers = find_layers(
        module, head=selection.head, include=selection.include, exclude=selection.exclude
    )
    free_layers(layers, ref)
    return layers


def free_layers(layers: Sequence[Layer], ref: str) -> list[Layer]:
    """The layers that may be factorised.

    Raises:
        RequestError: there are none; the message calls the model ``ref``.
    """
    free = [layer for layer in layers if layer.reason is None]
    if not free:
        raise RequestError(f"{ref}: has no linear layer that may be factorised")
    return free


def fixed_params(module: nn.Module, layers: Sequence[Layer]) -> int:
    """Parameters that no plan changes: everything but the weights of the given layers."""
    total = sum(p.numel() for p in module.parameters())
    return total - sum(layer.params for layer in layers)


def low_rank_layers(module: nn.Module) -> dict[str, LowRankLinear]:
    """Name → layer for every `LowRankLinear` in the module."""
    return {n: m for n, m in module.named_modules() if isinstance(m, LowRankLinear)}


def linear_modules(module: nn.Module) -> dict[str, nn.Module]:
    """Name → module, of all linear maps, dense and low-rank."""
    layers = {layer.name: layer.module for layer in find_layers(module)}
    return layers | dict(low_rank_layers(module))


def submodule(module: nn.Module, name: str) -> nn.Module:
    """``module.get_submodule`` with an error that names the layer."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise RequestError(f"{name}: the model has no such layer") from None


def _linear_maps(module: nn.Module) -> Iterator[Layer]:
    """Every linear map, with the reason why a map of its kind or place can't be factorised."""
    # nn.MultiheadAttention hands this weight to a fused function, which would multiply factors out.
    fused = {id(m.out_proj) for m in module.modules() if isinstance(m, nn.MultiheadAttention)}
    for name, child in module.named_modules():
        for part, parameter, reason in experts(child):
            count, a, b = parameter.shape
            yield Layer(f"{name}.{part}", child, (count * a, b), "experts", reason)
        kind = describe(child)
        if kind is None:
            continue
        reason_of_kind = kind.reason
        if reason_of_kind is None and id(child) in fused:
            reason_of_kind = reasons.IN_ATTENTION
        name = f"{name}.in_proj_weight" if kind.kind == "in_proj" else name
        yield Layer(name, child, kind.shape, kind.kind, reason_of_kind)


class _SharedWeights:
    """Which weights of a model are an embedding's too, or belong to several layers.

    Attributes:
        owners_of_several: names of the layers whose weight another layer shares.
    """

    def __init__(self, module: nn.Module) -> None:
        self._embeddings = {
            id(m.weight): name for name, m in module.named_modules() if isinstance(m, nn.Embedding)
        }
        self._owners: dict[int, str] = {}
        self.owners_of_several: set[str] = set()

    def reason_against(self, layer: Layer) -> str | None:
        """Why a shared weight keeps the layer dense. Layers must come in module order."""
        if layer.kind == "experts":
            return None
        weight = getattr(layer.module, "in_proj_weight" if layer.kind == "in_proj" else "weight")
        if id(weight) in self._embeddings:
            return reasons.tied_to(self._embeddings[id(weight)])
        owner = self._owners.setdefault(id(weight), layer.name)
        if owner == layer.name:
            return None
        self.owners_of_several.add(owner)
        return reasons.shares_weight_with(owner)


def _check_patterns(module: nn.Module, patterns: Sequence[str], flag: str) -> None:
    """Refuse an expression that matches no module: the user has misspelt it.

    Raises:
        RequestError: naming the expression.
    """
    names = [name for name, _ in module.named_modules() if name]
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise RequestError(
                f"{flag} {pattern!r}: matches no module of the model; "
                f"names look like {names[len(names) // 2]}"
            )


def _within(name: str, roots: Collection[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)
