"""The weights of a lazily opened model: they stay in their files until one is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.models.plain_reading import Stored

_PIECE = 1 << 22  # numbers


class Weights(Protocol):
    """What can give the values of a module whose parameters are on "meta"."""

    def read(self, name: str) -> Tensor:
        """A tensor by its name in the module's state, in memory of its own.

        Raises:
            RequestError: its file is damaged, or it is not finite.
        """
        ...


@dataclass(frozen=True)
class WeightsOnDisk:
    """Weights in safetensors files.

    Attributes:
        stored: name in the module's state → where it lies.
        types: name in the module's state → type that it is wanted in.
    """

    stored: Mapping[str, Stored]
    types: Mapping[str, torch.dtype]

    def read(self, name: str) -> Tensor:
        stored = self.stored[name]
        tensor = stored.read().to(self.types[name])
        # Piece by piece: what is looked at needs as much memory again.
        if not all(part.isfinite().all() for part in torch.split(tensor.reshape(-1), _PIECE)):
            raise RequestError(
                f"{stored.file}: {stored.name} holds values that are not finite; the checkpoint is "
                "damaged, fetch it again"
            )
        return tensor


def constant(shape: tuple[int, ...], dtype: torch.dtype, value: int = 0) -> Tensor:
    """A tensor of one number all over, which takes the memory of that number."""
    return torch.full((), value, dtype=dtype).expand(shape)


@contextmanager
def zeros(module: nn.Module) -> Iterator[None]:
    """While active, parameters on "meta" are zeros that take no memory, so that the module can be
    run for what it does and not for its output. They are in float32: in half precision a
    processor without instructions for it takes a hundred times as long."""
    slots = [
        (part._parameters, name, parameter)
        for part in module.modules()
        for name, parameter in part._parameters.items()
        if parameter is not None and parameter.is_meta
    ]
    zero_of = {
        id(parameter): nn.Parameter(constant(tuple(parameter.shape), torch.float32), False)
        for _, _, parameter in slots
    }
    try:
        for parameters, name, parameter in slots:
            parameters[name] = zero_of[id(parameter)]
        yield
    finally:
        for parameters, name, parameter in slots:
            parameters[name] = parameter
