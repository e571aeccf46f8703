"""What the file of a budget defines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, ClassVar

from pelacli.ranks.budget import Scope, Unit
from pelacli.ranks.limit import Limit


class Kind(ABC):
    """A way to say how small: the file of a budget has a class ``Kind`` that derives from this.

    A budget that only names the limit in another way, as parameters that may remain, has a
    ``DESCRIPTION``, its ``TYPE``, ``BOUNDS``, ``UNIT`` and ``SCOPE``, and an `asks` that calls
    `limit`. All else is as such a budget needs it.

    Attributes:
        DESCRIPTION: what it is, in the recipe's schema.
        TYPE: of a value.
        BOUNDS: of a value, as arguments of pydantic's ``Field``: ``{"gt": 0}``.
        ALONE: whether no other budget may stand beside it.
        MET_BY: what a policy must list in its ``BUDGETS`` to meet it: "ratio" for any limit. None
            where no policy is asked.
        IS_SEARCHED: whether models are measured to meet it, so that a plan from stored spectra and
            the Python interface don't have it.
        UNIT, SCOPE: what it counts, and whose; None where the recipe's ``unit`` and ``scope`` say.
        IS_COUNTED: whether it counts anything.
        name: of the file.
    """

    DESCRIPTION: ClassVar[str]
    TYPE: ClassVar[Any] = float
    BOUNDS: ClassVar[Mapping[str, Any]] = {}
    ALONE: ClassVar[bool] = True
    MET_BY: ClassVar[str | None] = "ratio"
    IS_SEARCHED: ClassVar[bool] = False
    UNIT: ClassVar[Unit | None] = None
    SCOPE: ClassVar[Scope | None] = None
    IS_COUNTED: ClassVar[bool] = True

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def asks(self, value: Any) -> Mapping[str, Any]:
        """What it means to a policy: fields of `pelacli.ranks.budget.Budget` with their values.

        Args:
            value: a recipe's, of the type and within the bounds.
        """

    def limit(self, value: float, one: Fraction | int = 1) -> Mapping[str, Any]:
        """What `asks` returns for a budget that is a limit.

        Args:
            one: what a value of 1 costs, in the unit of the budget.
        """
        return {"most": Limit(self.name, Fraction(str(value)), one)}

    def suffix(self, value: Any, unit: str) -> str:
        """What it adds to a model's name, where that names the directory of a run.

        Args:
            value: as a user gives it, not yet validated.
            unit: the recipe's.

        Raises:
            ValueError, TypeError: the value is no good; validation says so in better words.
        """
        return f"{self.name}{value}"
