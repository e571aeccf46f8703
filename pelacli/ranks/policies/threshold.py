"""Each layer keeps the same share of its energy, whatever that costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pelacli.ranks.policies.base import Ranks, Target

if TYPE_CHECKING:
    from pelacli.ranks.open_ranks import OpenRanks

BUDGETS = ("threshold",)
EIGHTS = False
ANY_FORM = False  # the paper has factors


def choose(layers: Sequence[OpenRanks], target: Target) -> Ranks:
    """Each layer's smallest rank that keeps at least the threshold of its energy.

    Ranks are rounded up to the next that is open. A layer that has none goes dense, or stays at
    its highest where a maximum rank forbids dense. A layer without energy gets its lowest rank.
    The limit, where there is one, is not looked at: the planner compares the outcome with it.
    """
    share = target.threshold
    assert share is not None
    return [layer.rounded_up(layer.spectrum.rank_keeping(share)) for layer in layers]
