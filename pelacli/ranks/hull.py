"""The upper hull of the layers' (cost, energy) points, bought from its steepest part on.

From its lowest rank a layer grows by items: a block of ``step`` ranks, or the jump from some rank
to dense, which keeps all the rest for less than its ranks would cost. The items of all layers are
bought in order of density (energy / cost), the best first. What does not fit is left out, and later
items that fit use up what remains. Items without energy are not bought.

A layer's blocks come in falling density, as its energies fall. The jump starts where its density is
between that of the blocks before and after, which is where it is lowest: so each layer's items
trace the upper hull of its (cost, energy) points, and buying by density is optimal up to the one
item that did not fit. Where a jump does not fit, the blocks behind its start take its place.

Ties go to the layer that comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pelacli.ranks.open_ranks import OpenRanks
from pelacli.ranks.policies.base import Ranks


@dataclass(frozen=True, eq=False)
class Hull:
    """The items of all layers in the order of buying.

    Attributes:
        layers: whose items they are.
        costs: of each item, [items].
        owners: the index of its layer, [items].
        jumps: whether it is a jump to dense, [items].
        waiting: whether it is a block that waits for the jump before it to fail, [items].
    """

    layers: Sequence[OpenRanks]
    costs: NDArray[np.int64]
    owners: NDArray[np.int64]
    jumps: NDArray[np.bool_]
    waiting: NDArray[np.bool_]

    @property
    def lowest_cost(self) -> int:
        """The cost of all layers at their lowest ranks."""
        return sum(layer.cost(layer.low) for layer in self.layers)

    @property
    def dense_cost(self) -> int:
        """The cost of all layers when they are dense."""
        return sum(layer.dense_cost for layer in self.layers)

    def cost(self, ranks: Ranks) -> int:
        """What the layers cost at these ranks."""
        return sum(layer.cost(rank) for layer, rank in zip(self.layers, ranks, strict=True))

    def buy(self, limit: int) -> Ranks:
        """The ranks that keep the most energy of all layers together at a cost of at most
        ``limit``, which must suffice for the lowest ranks."""
        left = limit - self.lowest_cost
        waiting = self.waiting.copy()
        bought = np.zeros(len(self.costs), bool)
        live = np.flatnonzero(~waiting)
        while len(live):
            spent = np.cumsum(self.costs[live])
            n = int(np.searchsorted(spent, left, side="right"))
            bought[live[:n]] = True
            left -= int(spent[n - 1]) if n else 0
            live = live[n:]
            # What is too dear now stays too dear. Where it is a block, its layer's jump (from a
            # rank that it will not reach) goes too; where it is a jump, the waiting blocks come in.
            closed = np.zeros(len(self.layers), bool)
            closed[self.owners[live[self.costs[live] > left]]] = True
            back = np.flatnonzero(waiting & closed[self.owners])
            waiting[back] = False
            jumps_gone = self.jumps[live] & closed[self.owners[live]]
            live = np.concatenate([live[~jumps_gone], back])
            live = np.sort(live[self.costs[live] <= left])
        return self._ranks(bought)

    def _ranks(self, bought: NDArray[np.bool_]) -> Ranks:
        count = len(self.layers)
        blocks = np.bincount(self.owners[bought & ~self.jumps], minlength=count)
        dense = np.zeros(count, bool)
        dense[self.owners[bought & self.jumps]] = True
        return [
            None if full else layer.low + layer.step * int(n)
            for layer, n, full in zip(self.layers, blocks, dense, strict=True)
        ]


def upper_hull(layers: Sequence[OpenRanks]) -> Hull:
    """The items of all layers in the order of buying."""
    items = [_items(layer) for layer in layers]
    counts = np.array([len(of.densities) for of in items], np.int64)
    densities = np.concatenate([np.empty(0), *(of.densities for of in items)])
    costs = np.concatenate([np.empty(0, np.int64), *(of.costs for of in items)])
    positions = np.concatenate([np.empty(0, np.int64), *(np.arange(n) for n in counts)])
    jump_positions = np.repeat(np.array([of.jump for of in items], np.int64), counts)
    owners = np.repeat(np.arange(len(layers)), counts)
    # Each layer's items lie in order and stay so: the sort is stable and their density falls.
    order = np.argsort(-densities, kind="stable")
    order = order[densities[order] > 0]
    jumps, waiting = positions == jump_positions, positions > jump_positions
    return Hull(layers, costs[order], owners[order], jumps[order], waiting[order])


@dataclass(frozen=True, eq=False)
class _Items:
    """What one layer offers, in the order of buying: blocks, the jump, the blocks in its place.

    Attributes:
        densities: energy / cost of each item, falling up to and behind the jump.
        jump: the index of the jump to dense; the number of items where there is none.
    """

    densities: NDArray[np.float64]
    costs: NDArray[np.int64]
    jump: int


def _items(layer: OpenRanks) -> _Items:
    energies = layer.spectrum.energies
    blocks = energies[layer.low : layer.high].reshape(-1, layer.step).sum(axis=1)
    block_cost, n = layer.step * layer.rank_cost, len(blocks)
    densities = blocks / block_cost
    if not layer.may_be_dense:
        return _Items(densities, np.full(n, block_cost, np.int64), jump=n)
    rest = energies[layer.high :].sum()
    # For a jump from after each number of blocks: what it keeps, costs, and their quotient.
    tails = np.concatenate([np.cumsum(blocks[::-1])[::-1] + rest, [rest]])
    jump_costs = layer.dense_cost - layer.rank_cost * layer.low - block_cost * np.arange(n + 1)
    slopes = tails / jump_costs
    start = n - int(np.argmin(slopes[::-1]))  # the last of equals: a smaller jump
    # Rounding must not put the jump out of order.
    lower = densities[start] if start < n else 0.0
    upper = densities[start - 1] if start else np.inf
    slope = min(max(slopes[start], lower), upper)
    costs = np.full(n + 1, block_cost, np.int64)
    costs[start] = jump_costs[start]
    densities = np.concatenate([densities[:start], [slope], densities[start:]])
    return _Items(densities, costs, jump=start)
