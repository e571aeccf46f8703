"""Put low-rank layers in the places of dense ones, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.lowrank.find import submodule
from pelacli.lowrank.layer import describe
from pelacli.lowrank.linear import LowRankLinear
from pelacli.lowrank.pivot_linear import PivotLinear
from pelacli.lowrank.pivoting import Pivots, pivots
from pelacli.ranks.forms import Form

# (down [r, in], up [out, r], bias [out] or None) of a layer
Factors = tuple[Tensor, Tensor, "Tensor | None"]
# What a low-rank layer is made of
Parts = Factors | Pivots
# (the module in the model, the one to take its place)
Exchange = tuple[nn.Module, nn.Module]


def in_form(factors: Factors, form: Form) -> Parts:
    """The factors as they are, or in pivot form."""
    return factors if form == "factors" else pivots(*factors)


def tensors(parts: Parts) -> dict[str, Tensor]:
    """The tensors of a low-rank layer under their names in its state."""
    if isinstance(parts, Pivots):
        named = {
            "down.weight": parts.down, "up.weight": parts.up, "order": parts.order,
            "down.bias": parts.down_bias, "up.bias": parts.up_bias,
        }  # fmt: skip
    else:
        named = dict(zip(("down.weight", "up.weight", "up.bias"), parts, strict=True))
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def replace(module: nn.Module, factors: Mapping[str, Parts]) -> None:
    """Put `LowRankLinear` in the place of the named layers.

    Args:
        factors: by the layers' names. A module that is registered under several names is replaced
            under all of them.

    Raises:
        RequestError: a name is no layer of the module.
    """
    exchange(module, _low_rank(module, factors))


@contextmanager
def replaced(module: nn.Module, factors: Mapping[str, Parts]) -> Iterator[None]:
    """`replace` for the time of the block; the very modules from before come back after it."""
    exchanges = _low_rank(module, factors)
    exchange(module, exchanges)
    try:
        yield
    finally:
        exchange(module, [(new, old) for old, new in exchanges])


def replace_empty(
    module: nn.Module, ranks: Mapping[str, int], form_of: Mapping[str, Form] | None = None
) -> None:
    """Put uninitialised `LowRankLinear` of the given ranks in place, to be filled from a file.

    Args:
        ranks, form_of: by the layers' names; a layer without a form is one of factors.

    Raises:
        RequestError: a name is no layer of the module that can be factorised, or has no room for so
            many pivots.
    """
    exchanges: list[Exchange] = []
    for name, rank in ranks.items():
        dense = submodule(module, name)
        kind = describe(dense)
        if kind is None or kind.reason is not None:
            raise RequestError(f"{name}: not a layer that can be factorised in this model")
        out, in_ = kind.shape
        form = (form_of or {}).get(name, "factors")
        if form == "pivots" and rank > min(out, in_):
            raise RequestError(f"{name}: {rank} pivots in a layer of {out} × {in_}")
        low = _module((out, in_), rank, form, getattr(dense, "bias", None) is not None)
        weight = cast(Tensor, dense.weight)
        for part in (low.down, low.up):
            for key, parameter in part.named_parameters():
                setattr(part, key, _parameter(weight.new_empty(parameter.shape), weight))
        if isinstance(low, PivotLinear):
            low.order = torch.empty_like(low.order, device=weight.device)
        exchanges.append((dense, _in_place_of(dense, low)))
    exchange(module, exchanges)


def exchange(module: nn.Module, exchanges: Iterable[Exchange]) -> None:
    """Put new modules in the places of old ones: under all their names, and in the plain lists that
    some models keep beside their modules and run (Mask2Former's heads). All or none: an error, or
    Ctrl-C, puts the old ones back."""
    new_of = dict(exchanges)
    try:
        _put(module, new_of)
    except BaseException:
        _put(module, {new: old for old, new in new_of.items()})
        raise


def _put(module: nn.Module, new_of: Mapping[nn.Module, nn.Module]) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # named_children would skip a twin
            if child is not None and child in new_of:
                setattr(parent, name, new_of[child])
        for value in vars(parent).values():
            if type(value) is list:
                for i, item in enumerate(value):
                    if isinstance(item, nn.Module) and item in new_of:
                        value[i] = new_of[item]


def _low_rank(module: nn.Module, factors: Mapping[str, Parts]) -> list[Exchange]:
    """The low-rank layers of the factors, each with the dense one whose place it takes."""
    exchanges: list[Exchange] = []
    for name, parts in factors.items():
        dense = submodule(module, name)
        weight = cast(Tensor, dense.weight)
        low = _filled(parts, weight)
        exchanges.append((dense, _in_place_of(dense, low)))
    return exchanges


def _module(shape: tuple[int, int], rank: int, form: Form, bias: bool) -> LowRankLinear:
    """A low-rank layer without memory for its weights."""
    out, in_ = shape
    cls = PivotLinear if form == "pivots" else LowRankLinear
    return cls(in_, out, rank, bias, device="meta")


def _filled(parts: Parts, like: Tensor) -> LowRankLinear:
    """A low-rank layer with these tensors, in the precision of the dense weight."""
    named = tensors(parts)
    form: Form = "pivots" if isinstance(parts, Pivots) else "factors"
    shape = parts.shape if isinstance(parts, Pivots) else (len(parts[1]), parts[0].shape[1])
    low = _module(shape, len(named["down.weight"]), form, "up.bias" in named)
    for part, prefix in ((low.down, "down."), (low.up, "up.")):
        for key in ("weight", "bias"):
            if prefix + key in named:
                setattr(part, key, _parameter(named[prefix + key], like))
    if isinstance(low, PivotLinear):
        low.order = named["order"].to(like.device)
    return low


def _in_place_of(dense: nn.Module, low: LowRankLinear) -> LowRankLinear:
    """The low-rank layer with what the dense one has beside its weight: its kind, whether its bias
    is trained, its mode and its hooks."""
    kind = describe(dense)
    low.replaces = low.replaces if kind is None else kind.kind
    bias = getattr(dense, "bias", None)
    for part in (low.down, low.up):
        if bias is not None and part.bias is not None:  # trained, where the weight is frozen
            part.bias.requires_grad_(bias.requires_grad)
    if "weight" in dense._parameters:  # else the hooks may be what computes it
        for hooks in _HOOKS:  # the very dicts: who holds a handle can still remove the hook
            setattr(low, hooks, getattr(dense, hooks))
    return low.train(dense.training)


# What a caller registered on a layer, as torch keeps it.
_HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks",
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_backward_pre_hooks",
    "_backward_hooks", "_is_full_backward_hook",
)  # fmt: skip


def _parameter(tensor: Tensor, like: Tensor) -> nn.Parameter:
    """A parameter like the weight that it stands for: of its device, precision and training."""
    return nn.Parameter(tensor.to(like.device, like.dtype).contiguous(), like.requires_grad)
