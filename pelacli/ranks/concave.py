"""A layer's way from its lowest rank to dense, and the upper concave hull of its points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pelacli.ranks.open_ranks import OpenRanks


@dataclass(frozen=True, eq=False)
class Steps:
    """What a layer adds from each of its points to the next; the first point is its lowest rank.

    Attributes:
        energies: what each step keeps more, [steps], not negative.
        costs: what it costs more, [steps], above 0.
    """

    energies: NDArray[np.float64]
    costs: NDArray[np.int64]

    def edges(self, first: int, end: int) -> Edges:
        """The edges of the hull over the steps from ``first`` to before ``end``, up to the last
        that keeps anything."""
        energies, costs = self.energies[first:end], self.costs[first:end]
        starts = _edge_starts(energies, costs)
        ends = np.append(starts[1:], len(costs))
        gains, prices = np.add.reduceat(energies, starts), np.add.reduceat(costs, starts)
        # Where edges are equally steep, rounding must not put the later one first.
        densities = np.minimum.accumulate(gains / prices)
        keeping = int(np.count_nonzero(densities > 0))
        return Edges(
            starts=first + starts[:keeping],
            ends=first + ends[:keeping],
            costs=prices[:keeping],
            first_costs=costs[starts[:keeping]],
            densities=densities[:keeping],
        )


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges of an upper hull, steepest first.

    Attributes:
        starts, ends: the steps that each spans, from ``starts`` to before ``ends``, [edges].
        costs: of each, [edges].
        first_costs: of its first step alone, [edges].
        densities: energy / cost, never rising, [edges].
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    costs: NDArray[np.int64]
    first_costs: NDArray[np.int64]
    densities: NDArray[np.float64]


def steps(layer: OpenRanks) -> Steps:
    """The steps from each open rank to the next, and from the highest to dense where that is
    open."""
    energies, ranks = layer.spectrum.energies, layer.ranks
    kept = [_sums(energies, ranks)]
    costs = [np.diff(layer.costs)]
    if layer.may_be_dense:
        kept.append(energies[ranks[-1] :].sum(keepdims=True))
        costs.append(np.array([layer.dense_cost - layer.costs[-1]], np.int64))
    return Steps(np.concatenate(kept), np.concatenate(costs))


def _sums(energies: NDArray[np.float64], ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """The energy between each rank and the next, [len(ranks) − 1]."""
    if len(ranks) < 2:
        return np.empty(0)
    return np.add.reduceat(energies[: ranks[-1]], ranks[:-1])


def _edge_starts(energies: NDArray[np.float64], costs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first step of each edge of the upper hull.

    The hull's slopes are the falling sequence nearest to the steps' own, weighted by their costs
    (Barlow et al., 1972), so pooling adjacent violators finds its edges.
    """
    densities = energies / costs
    changes = np.diff(densities)
    if not (changes > 0).any():
        return np.arange(len(costs))
    # The command line starts sooner where no plan is made.
    from scipy.optimize import isotonic_regression

    starts = isotonic_regression(densities, weights=costs, increasing=False).blocks[:-1]
    # Equal steps are pooled too. Apart they keep their density to the last digit.
    changed = np.append(0, np.cumsum(changes != 0))
    uneven = changed[np.append(starts[1:], len(costs)) - 1] > changed[starts]
    apart = np.ones(len(costs), bool)
    pooled = np.repeat(uneven, np.diff(np.append(starts, len(costs))))
    apart[pooled] = False
    apart[starts] = True
    return np.flatnonzero(apart)
