"""The ranks that are open to a layer, and the share of energy that each keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pelacli.ranks.spectrum import Spectrum


@dataclass(frozen=True, eq=False)
class Choice:
    """What one layer may become: a rank of low, low + step, …, high, or dense.

    Attributes:
        energies: squared singular values, non-increasing, [min(out, in)], float64.
        cost: of one rank; a multiple of in + out.
        dense: cost of the dense layer; the same multiple of in · out.
        low, high: smallest and largest rank; every one costs less than dense.
        open_end: whether dense follows ``high`` (a maximum rank below break-even forbids it).
    """

    energies: NDArray[np.float64]
    cost: int
    dense: int
    low: int
    high: int
    step: int
    open_end: bool

    def price(self, rank: int | None) -> int:
        """What the layer costs at this rank, or dense."""
        return self.dense if rank is None else rank * self.cost


def shares(energies: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of the energy that each rank keeps, [n + 1] for ranks 0 to n.

    The last is exactly 1 whatever the rounding. Without any energy every rank keeps all of it.
    """
    kept = np.concatenate([[0.0], np.cumsum(energies)])
    return kept / kept[-1] if kept[-1] > 0 else np.ones_like(kept)


# GPUs multiply half-precision matrices in vectors of eight: a rank of 307 takes their slow kernels
# (docs/log.md). A large layer does not miss what it rounds off.
_ALIGNED, _LARGE = 8, 64


def open_ranks(
    s: Spectrum, cost: int, dense: int, min_rank: int, max_rank: int | None, multiple: int | None
) -> Choice | None:
    """The ranks that are open to a layer; None where it can only be dense."""
    if not cost:
        return None
    below_break_even = (dense - 1) // cost
    top = below_break_even if max_rank is None else min(below_break_even, max_rank)
    step = multiple or (_ALIGNED if top >= _LARGE else 1)
    low = -(-min_rank // step) * step
    if low > top:
        low, step = min_rank, 1
    if low > top:
        return None
    high = low + (top - low) // step * step
    open_end = max_rank is None or max_rank > below_break_even
    return Choice(s.energies, cost, dense, low, high, step, open_end)
