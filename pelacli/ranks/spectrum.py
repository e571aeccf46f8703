"""What the rank engine sees of a layer: its squared singular values, and what a rank costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pelacli.errors import RequestError


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What the engine sees of a layer.

    Attributes:
        name: of the layer in its model.
        shape: (out, in).
        energies: squared singular values, non-increasing, [min(out, in)], float64. To be summed
            over layers they must be in one unit: for calibrated layers the damage per sample.
        tokens: positions per sample; the layer takes 2 · tokens · out · in FLOPs.

    Raises:
        RequestError: energies that are not finite (the weights or samples are not).
        ValueError: energies of the wrong length, negative, or rising.
    """

    name: str
    shape: tuple[int, int]
    energies: NDArray[np.float64]
    tokens: float = 1.0

    def __post_init__(self) -> None:
        energies = np.asarray(self.energies, np.float64)
        object.__setattr__(self, "energies", energies)
        if energies.shape != (min(self.shape),):
            raise ValueError(
                f"{self.name}: {energies.shape} energies for a layer of shape {self.shape}"
            )
        if not np.isfinite(energies).all():
            raise RequestError(
                f"{self.name}: its weight or samples hold values that are not finite"
            )
        if len(energies) and (energies[-1] < 0 or (np.diff(energies) > 0).any()):
            raise ValueError(f"{self.name}: energies must be non-increasing and not negative")


def costs(s: Spectrum, unit: str) -> tuple[int, int]:
    """(cost of one rank, cost of the dense layer) in parameters or FLOPs."""
    out, in_ = s.shape
    per_weight = 1 if unit == "params" else round(2 * s.tokens)
    return per_weight * (out + in_), per_weight * out * in_
