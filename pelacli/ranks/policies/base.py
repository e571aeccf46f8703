"""What a policy is asked, and what the file of a policy defines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # whoever only wants the names of the policies needs no NumPy
    from pelacli.ranks.open_ranks import OpenRanks
    from pelacli.ranks.spectrum import Spectrum

# One rank per layer, in the order of the layers; None where the layer is dense.
Ranks = list["int | None"]


@dataclass(frozen=True)
class Target:
    """What the ranks that a policy chooses have to meet.

    Attributes:
        limit: what the layers may cost together at most; None where nothing limits it. It never is
            less than they cost at their lowest ranks.
        ratio: after / before of these layers alone; None where more is counted than they.
        energy: share of the energy that the layers and the settled ones keep together, 0 to 1.
        threshold: share of its own energy that each layer keeps, 0 to 1.
        settled: the layers that the policy has no say in, each with its rank (None: dense).
    """

    limit: int | None
    ratio: Fraction | None = None
    energy: float | None = None
    threshold: float | None = None
    settled: Sequence[tuple[Spectrum, int | None]] = ()


class Policy(Protocol):
    """What the file of a policy defines.

    Attributes:
        BUDGETS: what it can meet: "ratio" (which stands for any limit), "energy", "threshold". One
            of them is needed.
        EIGHTS: whether large layers get multiples of eight where the budget names no multiple.
        ANY_FORM: whether a budget with form "auto" lets each layer take the form that is cheaper at
            its rank. Where a policy does not say so, that means factors.
    """

    BUDGETS: tuple[str, ...]
    EIGHTS: bool
    ANY_FORM: bool

    def choose(self, layers: Sequence[OpenRanks], target: Target) -> Ranks:
        """The rank of each layer.

        Args:
            layers: sorted by name, so that ties are broken by name.

        Raises:
            RequestError: no ranks meet the target.
        """
        ...
