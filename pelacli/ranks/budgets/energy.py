"""The smallest plan that keeps a share of the energy of all layers together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pelacli.ranks.budgets import base


class Kind(base.Kind):
    """A share."""

    DESCRIPTION = "as small as keeps this share of all layers' energy"
    BOUNDS: ClassVar = {"gt": 0, "le": 1}
    MET_BY = "energy"

    def asks(self, value: float) -> Mapping[str, Any]:
        return {"energy": value}

    def suffix(self, value: Any, unit: str) -> str:
        return f"e{value:g}{'' if unit == 'params' else f'-{unit}'}"
