"""Put low-rank layers in the places of dense ones, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.lowrank.find import submodule
from pelacli.lowrank.layer import describe
from pelacli.lowrank.linear import LowRankLinear

# (down [r, in], up [out, r], bias [out] or None) of a layer
Factors = tuple[Tensor, Tensor, "Tensor | None"]
# (the module in the model, the one to take its place)
Exchange = tuple[nn.Module, nn.Module]


def replace(module: nn.Module, factors: Mapping[str, Factors]) -> None:
    """Put `LowRankLinear` in the place of the named layers.

    Args:
        factors: by the layers' names. A module that is registered under several names is replaced
            under all of them.

    Raises:
        RequestError: a name is no layer of the module.
    """
    exchange(module, _low_rank(module, factors))


@contextmanager
def replaced(module: nn.Module, factors: Mapping[str, Factors]) -> Iterator[None]:
    """`replace` for the time of the block; the very modules from before come back after it."""
    exchanges = _low_rank(module, factors)
    exchange(module, exchanges)
    try:
        yield
    finally:
        exchange(module, [(new, old) for old, new in exchanges])


def replace_empty(module: nn.Module, ranks: Mapping[str, int]) -> None:
    """Put uninitialised `LowRankLinear` of the given ranks in place, to be filled from a file.

    Raises:
        RequestError: a name is no layer of the module that can be factorised.
    """
    factors = {}
    for name, rank in ranks.items():
        dense = submodule(module, name)
        kind = describe(dense)
        if kind is None or kind.reason is not None:
            raise RequestError(f"{name}: not a layer that can be factorised in this model")
        out, in_ = kind.shape
        weight = cast(Tensor, dense.weight)
        bias = getattr(dense, "bias", None)
        factors[name] = (
            weight.new_empty(rank, in_),
            weight.new_empty(out, rank),
            None if bias is None else weight.new_empty(out),
        )
    replace(module, factors)


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


def _low_rank(module: nn.Module, factors: Mapping[str, Factors]) -> list[Exchange]:
    """The low-rank layers of the factors, each with the dense one whose place it takes."""
    exchanges: list[Exchange] = []
    for name, (down, up, bias) in factors.items():
        dense = submodule(module, name)
        low = LowRankLinear(
            down.shape[1],
            up.shape[0],
            down.shape[0],
            bias is not None,
            device="meta",
            dtype=down.dtype,
        )
        kind = describe(dense)
        low.replaces = low.replaces if kind is None else kind.kind
        weight = cast(Tensor, dense.weight)
        low.down.weight, low.up.weight = _parameter(down, weight), _parameter(up, weight)
        if bias is not None:
            low.up.bias = _parameter(bias, weight)
            dense_bias = getattr(dense, "bias", None)
            if dense_bias is not None:  # it may be trained where the weight is frozen
                low.up.bias.requires_grad_(dense_bias.requires_grad)
        if "weight" in dense._parameters:  # else the hooks may be what computes it
            for hooks in _HOOKS:  # the very dicts: who holds a handle can still remove the hook
                setattr(low, hooks, getattr(dense, hooks))
        exchanges.append((dense, low.train(dense.training)))
    return exchanges


# What a caller registered on a layer, as torch keeps it.
_HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks",
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_backward_pre_hooks",
    "_backward_hooks", "_is_full_backward_hook",
)  # fmt: skip


def _parameter(tensor: Tensor, like: Tensor) -> nn.Parameter:
    """A parameter like the weight that it stands for: of its device, precision and training."""
    return nn.Parameter(tensor.to(like.device, like.dtype).contiguous(), like.requires_grad)
