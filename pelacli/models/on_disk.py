"""The weights of a lazily opened model: they stay in their files until one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

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
