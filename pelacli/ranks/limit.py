"""What a plan may cost at most, in the words of the budget that says so."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from pelacli.ranks import ratio as ratios


@dataclass(frozen=True)
class Limit:
    """A value of a budget, and what it comes to.

    Attributes:
        name: of the budget: "ratio".
        value: as it was asked for.
        one: what a value of 1 costs, in parameters or FLOPs: for a ratio all that is counted.
    """

    name: str
    value: Fraction
    one: Fraction | int = 1

    @property
    def cost(self) -> int:
        """What may be spent, in parameters or FLOPs."""
        return int(self.value * self.one // 1)

    def smallest(self, cost: int) -> str:
        """The smallest value that suffices for a cost, rounded up to 4 digits."""
        return ratios.rounded_up(cost, self.one)

    def __str__(self) -> str:
        return f"{self.name} {ratios.text(self.value)}"
