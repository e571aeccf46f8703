"""The smallest model that loses few enough points of its metric.

`pelacli.steps.quality` measures models at one ratio after the other, and asks the policy for these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pelacli.ranks.budgets import base


class Kind(base.Kind):
    """Points of the main metric."""

    DESCRIPTION = "as small as loses no more points of the main metric"
    BOUNDS: ClassVar = {"ge": 0}
    IS_SEARCHED = True

    def asks(self, value: float) -> Mapping[str, Any]:
        return {}  # each trial asks for a ratio

    def suffix(self, value: Any, unit: str) -> str:
        return f"d{value:g}{'' if unit == 'params' else f'-{unit}'}"
