"""After / before: what remains of the parameters or FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pelacli.ranks import ratio as ratios
from pelacli.ranks.budgets import base

# Of the units, in the name of a run's directory.
_LETTERS = {"flops": "f", "latency": "l"}


class Kind(base.Kind):
    """A decimal or a fraction. Beside a threshold both must hold."""

    DESCRIPTION = "after / before: 0.5, 2/3; 1/2 where nothing else says how small"
    TYPE = str
    ALONE = False

    def asks(self, value: str) -> Mapping[str, Any]:
        return {"ratio": ratios.parse(value)}

    def suffix(self, value: Any, unit: str) -> str:
        return f"{_LETTERS.get(unit, 'r')}{float(ratios.parse(value)):.2f}"
