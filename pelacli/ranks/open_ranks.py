"""The ranks that a policy may give to a layer."""

from __future__ import annotations

from dataclasses import dataclass

from pelacli.ranks.spectrum import Spectrum


@dataclass(frozen=True, eq=False)
class OpenRanks:
    """What one layer may become: a rank of low, low + step, …, high, or dense.

    Attributes:
        rank_cost: cost of one rank; a multiple of in + out.
        dense_cost: cost of the dense layer; the same multiple of in · out.
        low, high: smallest and largest rank; every one costs less than dense.
        may_be_dense: False where a maximum rank below break-even forbids it.
    """

    spectrum: Spectrum
    rank_cost: int
    dense_cost: int
    low: int
    high: int
    step: int
    may_be_dense: bool

    def cost(self, rank: int | None) -> int:
        """What the layer costs at this rank; None: dense."""
        return self.dense_cost if rank is None else rank * self.rank_cost

    @property
    def largest(self) -> int | None:
        """What keeps the most energy: None, which is dense, or else the highest rank."""
        return None if self.may_be_dense else self.high

    def rounded_down(self, rank: int) -> int:
        """The nearest open rank that is no larger; the lowest where none is so small."""
        return max(self.low, min(self.low + (rank - self.low) // self.step * self.step, self.high))

    def rounded_up(self, rank: int) -> int | None:
        """The nearest open rank that is no smaller; `largest` where none is so large."""
        rank = self.low - (self.low - max(self.low, rank)) // self.step * self.step
        return rank if rank <= self.high else self.largest
