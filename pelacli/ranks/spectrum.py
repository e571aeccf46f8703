"""What the rank engine sees of a layer: its squared singular values, and what a rank keeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import fsum

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

    @cached_property
    def energy(self) -> float:
        """The sum of all energies."""
        return float(self.energies.sum())

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """The share of the energy that each rank keeps, [n + 1] for ranks 0 to n.

        The last is exactly 1 whatever the rounding. Without any energy every rank keeps all of it.
        """
        kept = np.concatenate([[0.0], np.cumsum(self.energies)])
        return kept / kept[-1] if kept[-1] > 0 else np.ones_like(kept)

    def share_kept(self, rank: int | None) -> float:
        """The share of the energy that this rank keeps, 0 to 1; None: dense, which keeps all."""
        return 1.0 if rank is None else float(self.shares[rank])

    def rank_keeping(self, share: float) -> int:
        """The smallest rank that keeps at least this share of the energy, 0 to 1."""
        return int(np.searchsorted(self.shares, share))


def share_kept(layers: Iterable[tuple[Spectrum, int | None]]) -> float:
    """The share of the energy of all layers together that they keep at these ranks (None: dense).

    The sums are exact (`math.fsum`), so the order of the layers does not show in the last digit.
    """
    kept, energies = [], []
    for spectrum, rank in layers:
        energies.append(spectrum.energy)
        kept.append(spectrum.share_kept(rank) * spectrum.energy)
    whole = fsum(energies)
    return fsum(kept) / whole if whole > 0 else 1.0
