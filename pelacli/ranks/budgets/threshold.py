"""Each layer keeps a share of its own energy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pelacli.ranks.budgets import base


class Kind(base.Kind):
    """A share. A ratio may stand beside it, and the outcome must meet that too."""

    DESCRIPTION = "share of energy a layer keeps"
    BOUNDS: ClassVar = {"gt": 0, "le": 1}
    ALONE = False
    MET_BY = "threshold"
    IS_COUNTED = False

    def asks(self, value: float) -> Mapping[str, Any]:
        return {"threshold": value}

    def suffix(self, value: Any, unit: str) -> str:
        return f"t{value:g}"
