"""A linear map in a model: what kind it is, its shape, its weight as out × in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.lowrank.linear import LowRankLinear
from pelacli.ranks import reasons

# Kinds that are one parameter of a module, and carry its name.
_BY_PARAMETER = {"in_proj", "experts"}


@dataclass(frozen=True)
class Layer:
    """A linear map found in a model.

    Attributes:
        name: the module's name; for a fused projection the parameter's.
        shape: (out, in); of fused experts (experts · a, b), as [experts, a, b] is stored.
        kind: "linear", "conv1d" (transformers' transposed linear), "conv1x1", "in_proj" or
            "experts" (a parameter that holds the weights of all experts of a mixture).
        reason: why it cannot or shall not be factorised; None where it can.
        read: gives a parameter by its name in the model's state, where the module holds its shape
            alone ("meta").
    """

    name: str
    module: nn.Module
    shape: tuple[int, int]
    kind: str
    reason: str | None = None
    read: Callable[[str], Tensor] | None = None

    def release(self) -> None:
        """Let go of the module once it is replaced, so that the memory of its weight is freed."""
        object.__setattr__(self, "module", nn.Module())

    @property
    def params(self) -> int:
        """Parameters of the weight matrix, without the bias."""
        return self.shape[0] * self.shape[1]

    @property
    def weight(self) -> Tensor:
        """The weight as out × in, whatever way the module stores it. A view, detached; read anew
        each time where the weights are on disk."""
        weight = self._values(self._parameter)
        return weight.T if self.kind == "conv1d" else weight.reshape(self.shape)

    @property
    def bias(self) -> Tensor | None:
        return self._values("bias") if self.has_bias else None

    @property
    def has_bias(self) -> bool:
        return getattr(self.module, "bias", None) is not None

    @property
    def bytes(self) -> int:
        """Bytes of the weight."""
        return self.params * int(getattr(self.module, self._parameter).element_size())

    @property
    def device(self) -> torch.device:
        """Where the weight is, or comes to when it is read."""
        device: torch.device = getattr(self.module, self._parameter).device
        return device if self.read is None else torch.device("cpu")

    @property
    def _parameter(self) -> str:
        return self.name.rpartition(".")[2] if self.kind in _BY_PARAMETER else "weight"

    def _values(self, parameter: str) -> Tensor:
        tensor = cast(Tensor, getattr(self.module, parameter)).detach()
        if self.read is None or not tensor.is_meta:
            return tensor
        return self.read(self.name if self.kind in _BY_PARAMETER else f"{self.name}.{parameter}")


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a dense layer as out × in, detached."""
    kind = describe(layer)
    if kind is None:
        raise RequestError(f"{type(layer).__name__}: not a linear layer")
    return Layer("", layer, kind.shape, kind.kind).weight


@dataclass(frozen=True)
class LinearKind:
    """What kind of linear map a module is.

    Attributes:
        kind, shape: as in `Layer`.
        reason: why a map of this kind cannot be factorised; None where it can.
    """

    kind: str
    shape: tuple[int, int]
    reason: str | None


def describe(m: nn.Module) -> LinearKind | None:
    """The kind of linear map that a module is; None where it is none, or low-rank already."""
    if isinstance(m, LowRankLinear):
        return None
    if isinstance(m, nn.Linear):
        # A subclass that computes something else with its weight is not the map we know.
        reason = None if _is_plain(m) else reasons.own_forward(type(m).__name__)
        return LinearKind("linear", (m.out_features, m.in_features), reason)
    weight = getattr(m, "weight", None)
    if type(m).__name__ == "Conv1D" and hasattr(m, "nf") and isinstance(weight, Tensor):
        return LinearKind("conv1d", (weight.shape[1], weight.shape[0]), None)
    if isinstance(m, nn.Conv2d | nn.Conv1d) and set(m.kernel_size) == {1} and m.groups == 1:
        return LinearKind("conv1x1", (m.out_channels, m.in_channels), reasons.CONVOLUTION)
    in_proj = getattr(m, "in_proj_weight", None)
    if isinstance(m, nn.MultiheadAttention) and isinstance(in_proj, Tensor):
        return LinearKind("in_proj", (in_proj.shape[0], in_proj.shape[1]), reasons.FUSED_IN_PROJ)
    return None


def experts(m: nn.Module) -> Iterator[tuple[str, Tensor, str]]:
    """(name, parameter [experts, a, b], reason) of what holds the weights of a mixture's experts
    in one piece, as transformers' do; their product is one grouped call."""
    count = getattr(m, "num_experts", None)
    for name, parameter in m.named_parameters(recurse=False):
        if isinstance(count, int) and parameter.ndim == 3 and len(parameter) == count:
            yield name, parameter, reasons.FUSED_EXPERTS


def _is_plain(m: nn.Linear) -> bool:
    """Whether a linear layer computes what ``nn.Linear`` does. Where a subclass has a forward of
    its own (Falcon's), that is tried on a small copy."""
    if type(m).forward is nn.Linear.forward:
        return True
    if set(m._parameters) != {"weight", "bias"} or m._buffers or m._modules:
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator, device="cpu") for shape in ((2, 5), (3, 5), (3,))
    )
    small = copy.copy(m)
    parameters = {"weight": weight, "bias": None if m.bias is None else bias}
    small.__dict__ |= {"_parameters": parameters, "in_features": 5, "out_features": 3}
    try:
        with torch.no_grad():
            output = small.forward(x)
    except Exception:  # whatever a forward that we don't know may raise
        return False
    expected = F.linear(x, weight, parameters["bias"])
    return isinstance(output, Tensor) and torch.allclose(output, expected, atol=1e-5)
