"""The ranks that a policy may give to a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pelacli.ranks.forms import Form
from pelacli.ranks.spectrum import Spectrum


@dataclass(frozen=True, eq=False)
class OpenRanks:
    """What one layer may become: a rank that is open to it, or dense.

    Attributes:
        ranks: those that are open, rising, [n] with n ≥ 1.
        costs: of each in its form, [n]; they rise with the rank and are all below the dense cost.
        dense_cost: cost of the dense layer.
        may_be_dense: False where a maximum rank forbids it.
        forms: of each rank, as indices of ``choice``, [n].
        choice: the forms that the layer may take.
    """

    spectrum: Spectrum
    ranks: NDArray[np.int64]
    costs: NDArray[np.int64]
    dense_cost: int
    may_be_dense: bool
    forms: NDArray[np.intp]
    choice: tuple[Form, ...] = ("factors",)

    @property
    def low(self) -> int:
        """The smallest open rank."""
        return int(self.ranks[0])

    @property
    def high(self) -> int:
        """The largest open rank."""
        return int(self.ranks[-1])

    @property
    def largest(self) -> int | None:
        """What keeps the most energy: None, which is dense, or else the highest rank."""
        return None if self.may_be_dense else self.high

    def cost(self, rank: int | None) -> int:
        """What the layer costs at this rank, one that is open; None: dense."""
        return self.dense_cost if rank is None else int(self.costs[self._index(rank)])

    def form(self, rank: int | None) -> Form | None:
        """The form of the layer at this rank, one that is open; None: dense, which has none."""
        return None if rank is None else self.choice[self.forms[self._index(rank)]]

    def within(self, cost: int) -> int:
        """The largest open rank that costs no more; the lowest where all do."""
        return int(self.ranks[max(0, int(np.searchsorted(self.costs, cost, side="right")) - 1)])

    def rounded_up(self, rank: int) -> int | None:
        """The nearest open rank that is no smaller; `largest` where none is so large."""
        index = self._index(rank)
        return int(self.ranks[index]) if index < len(self.ranks) else self.largest

    def _index(self, rank: int) -> int:
        return int(np.searchsorted(self.ranks, rank))
