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


def replace(module: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor, Tensor | None]]) -> None:
    """Put `LowRankLinear` in the place of the named layers, in place.

    Args:
        factors: layer name → (down [r, in], up [out, r], bias [out] or None). A module that is
            registered under several names is replaced under all of them.

    Raises:
        RequestError: a name is no layer of the module.
    """
    put(module, _built(module, factors))


@contextmanager
def replaced(
    module: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor, Tensor | None]]
) -> Iterator[None]:
    """`replace` for a while: afterwards the very modules from before are back in their places."""
    pairs = _built(module, factors)
    put(module, pairs)
    try:
        yield
    finally:
        put(module, [(new, old) for old, new in pairs])


def _built(
    module: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor, Tensor | None]]
) -> list[tuple[nn.Module, nn.Module]]:
    """(the layer there is, the low-rank one for its place) of each name."""
    pairs: list[tuple[nn.Module, nn.Module]] = []
    for name, found in factors.items():
        old = submodule(module, name)
        down, up, bias = found
        new = LowRankLinear(
            down.shape[1],
            up.shape[0],
            down.shape[0],
            bias is not None,
            device="meta",
            dtype=down.dtype,
        )
        new.down.weight, new.up.weight = _parameter(down, old), _parameter(up, old)
        if bias is not None:
            new.up.bias = _parameter(bias, old)
        pairs.append((old, new.train(old.training)))
    return pairs


def put(module: nn.Module, pairs: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Put new modules in the places of old ones: under all their names, and in the plain lists
    that some models keep beside and run (Mask2Former's heads)."""
    new = dict(pairs)
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # named_children would skip a twin
            if child in new:
                setattr(parent, name, new[child])
        for value in vars(parent).values():
            if type(value) is list:
                for i, item in enumerate(value):
                    if isinstance(item, nn.Module) and item in new:
                        value[i] = new[item]


def replace_empty(module: nn.Module, ranks: Mapping[str, int]) -> None:
    """Put uninitialised `LowRankLinear` of the given ranks in place, to be filled from a file."""
    factors = {}
    for name, rank in ranks.items():
        described = describe(submodule(module, name))
        if described is None or described[2] is not None:
            raise RequestError(f"{name}: not a layer that can be factorised in this model")
        out, in_ = described[1]
        old = submodule(module, name)
        weight = cast(Tensor, old.weight)
        bias = getattr(old, "bias", None)
        factors[name] = (
            weight.new_empty(rank, in_),
            weight.new_empty(out, rank),
            None if bias is None else weight.new_empty(out),
        )
    replace(module, factors)


def _parameter(tensor: Tensor, like: nn.Module) -> nn.Parameter:
    old = cast(Tensor, like.weight)
    return nn.Parameter(tensor.to(old.device, old.dtype).contiguous(), old.requires_grad)
