"""The upper hulls of the layers' (cost, energy) points, bought from their steepest part on.

From its lowest rank a layer grows by steps, to the next open rank or at last to dense. The points
that it passes have an upper concave hull, whose edges span one step or more: several where a later
step is steeper than one before it, as the last one in factors, which keeps all the rest for less
than its ranks would cost, and as many in pivots, whose ranks become cheaper.

The edges of all layers are bought in order of density (energy / cost), the best first. Where one
does not fit into what is left, the hull of those of its points that fit takes its place. So each
purchase is the densest of all that fit: from where any layer is to any of its later points. What
keeps no energy is not bought.

It is optimal but for the last edges that do not fit. With more to spend it never keeps less: up to
the first purchase that only the larger limit allows both are the same. That one costs more than all
that the smaller limit has left then, and whatever that still buys is no denser.

Ties go to the layer that comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pelacli.ranks.concave import Steps, steps
from pelacli.ranks.open_ranks import OpenRanks
from pelacli.ranks.policies.base import Ranks


@dataclass(frozen=True, eq=False)
class Hull:
    """The hulls of all layers.

    Attributes:
        steps: of each layer.
        edges: of all layers, in the order of buying.
    """

    layers: Sequence[OpenRanks]
    steps: Sequence[Steps]
    edges: _Edges

    @property
    def lowest_cost(self) -> int:
        """The cost of all layers at their lowest ranks."""
        return sum(layer.cost(layer.low) for layer in self.layers)

    @property
    def largest_cost(self) -> int:
        """The cost of all layers when each keeps the most that it can."""
        return sum(layer.cost(layer.largest) for layer in self.layers)

    def cost(self, ranks: Ranks) -> int:
        """What the layers cost at these ranks."""
        return sum(layer.cost(rank) for layer, rank in zip(self.layers, ranks, strict=True))

    def buy(self, limit: int) -> Ranks:
        """The ranks that keep the most energy of all layers together at a cost of at most
        ``limit``, which must suffice for the lowest ranks."""
        left = limit - self.lowest_cost
        reached = np.zeros(len(self.layers), np.int64)
        edges = self.edges
        while len(edges):
            spent = np.cumsum(edges.costs)
            n = int(np.searchsorted(spent, left, side="right"))
            np.maximum.at(reached, edges.owners[:n], edges.ends[:n])
            left -= int(spent[n - 1]) if n else 0
            edges = self._within(left, edges[n:])
        return [_rank(layer, int(at)) for layer, at in zip(self.layers, reached, strict=True)]

    def _within(self, left: int, edges: _Edges) -> _Edges:
        """The edges that fit into what is left, each alone, in the order of buying. In place of
        the first of a layer that does not, and of all behind it, come those of the hull below."""
        too_dear = np.flatnonzero(edges.costs > left)
        # layer → its first that is too dear
        cut = np.full(len(self.layers), np.iinfo(np.int64).max)
        np.minimum.at(cut, edges.owners[too_dear], edges.starts[too_dear])
        fitting = edges[edges.starts < cut[edges.owners]]
        is_cut = edges.starts[too_dear] == cut[edges.owners[too_dear]]
        parts = too_dear[is_cut & (edges.first_costs[too_dear] <= left)]
        finer = [self._finer(left, edges, int(index)) for index in parts]
        if not finer:
            return fitting
        joined = _joined([fitting, *finer])
        return joined[np.lexsort((joined.owners, -joined.densities))]

    def _finer(self, left: int, edges: _Edges, index: int) -> _Edges:
        """The edges of the hull of those points inside an edge that fit into what is left."""
        owner, start = int(edges.owners[index]), int(edges.starts[index])
        costs = self.steps[owner].costs[start : int(edges.ends[index])]
        count = int(np.searchsorted(np.cumsum(costs), left, side="right"))
        return _edges(owner, self.steps[owner], start, start + count)


def upper_hull(layers: Sequence[OpenRanks]) -> Hull:
    """The hulls of all layers."""
    chains = [steps(layer) for layer in layers]
    edges = [_edges(owner, chain, 0, len(chain.costs)) for owner, chain in enumerate(chains)]
    joined = _joined(edges)
    # The sort is stable: equally dense edges stay in the order of the layers.
    return Hull(layers, chains, joined[np.argsort(-joined.densities, kind="stable")])


def _rank(layer: OpenRanks, steps_taken: int) -> int | None:
    if steps_taken == len(layer.ranks):
        return None
    return int(layer.ranks[steps_taken])


@dataclass(frozen=True, eq=False)
class _Edges:
    """Edges of several layers; see `pelacli.ranks.concave.Edges`.

    Attributes:
        owners: the index of each edge's layer, [edges].
    """

    owners: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    costs: NDArray[np.int64]
    first_costs: NDArray[np.int64]
    densities: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, which: slice | NDArray[np.int64] | NDArray[np.bool_]) -> _Edges:
        return _Edges(*(getattr(self, field.name)[which] for field in fields(self)))


def _edges(owner: int, chain: Steps, first: int, end: int) -> _Edges:
    """The edges of one layer's hull over some of its steps."""
    hull = chain.edges(first, end)
    return _Edges(np.full(len(hull.starts), owner), *vars(hull).values())


def _joined(parts: Sequence[_Edges]) -> _Edges:
    """All edges of several lists in one."""
    none = _edges(0, _NO_STEPS, 0, 0)
    return _Edges(
        *(
            np.concatenate([getattr(part, field.name) for part in (none, *parts)])
            for field in fields(_Edges)
        )
    )


_NO_STEPS = Steps(np.empty(0), np.empty(0, np.int64))
