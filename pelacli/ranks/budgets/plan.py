"""A plan that was made before, also one that was edited by hand: it brings its ranks along."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pelacli.ranks.budgets import base


class Kind(base.Kind):
    """A file. A recipe may have a ratio or a threshold beside it, which the plan passes over."""

    DESCRIPTION = "JSON plan to use, in place of a policy"
    TYPE = Path
    ALONE = False
    MET_BY = None

    def asks(self, value: Path) -> Mapping[str, Any]:
        return {}

    def suffix(self, value: Any, unit: str) -> str:
        return "plan"
