"""What the layers of a model take on a device, as a plan in units of time wants it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from pelacli.lowrank.layer import Layer
from pelacli.measure import layer_times
from pelacli.measure.flops import Cost
from pelacli.measure.layer_times import Case, LayerTimes
from pelacli.ranks.forms import Form
from pelacli.ranks.plan import Plan
from pelacli.ranks.prices import LatencyTable, Prices
from pelacli.ranks.spectrum import Spectrum
from pelacli.report.latencies import Conditions

_STEP_ON_CPU = 8  # CPUs take any rank; between those that were timed, time grows about evenly


@dataclass(frozen=True)
class ModelTimes:
    """Times of a dense model on a device, and of its layers at each rank.

    Attributes:
        batch_size: samples of one forward pass.
        dense: nanoseconds of one forward pass of the dense model.
        tables: of the layers that may be factorised; all calls of a layer in one pass together.
    """

    conditions: Conditions
    batch_size: int
    dense: int
    tables: Mapping[str, LatencyTable]

    @property
    def fixed(self) -> int:
        """Nanoseconds of what no plan changes: what is left of the dense model's."""
        return max(0, self.dense - sum(table.dense for table in self.tables.values()))

    @property
    def planned_dense(self) -> int:
        """Nanoseconds of the dense model as a plan has them, its layers' own and the fixed part."""
        return self.fixed + sum(table.dense for table in self.tables.values())

    def predicted(self, plan: Plan, spectra: Sequence[Spectrum]) -> int:
        """Nanoseconds of one forward pass of the model after a plan."""
        prices = Prices("latency", self.tables)
        layers = ((spectrum, plan.layers[spectrum.name]) for spectrum in spectra)
        return self.fixed + sum(prices.of(s, layer.rank, layer.form) for s, layer in layers)


def case_of(layer: Layer, cost: Cost, batch_size: int) -> Case | None:
    """How a layer is run on a batch; None where a pass never applies it."""
    calls = cost.calls.get(layer.name, 0)
    if not calls:
        return None
    out, in_ = layer.shape
    tokens = max(1, batch_size * cost.tokens[layer.name] // calls)
    return Case(out, in_, layer.has_bias, tokens)


def tables(
    layers: Sequence[Layer],
    cost: Cost,
    batch_size: int,
    known: Mapping[Case, LayerTimes],
    device: str,
) -> dict[str, LatencyTable]:
    """Layer → its times at each rank.

    Args:
        known: times of the layers' cases, as `case_of` gives them.
        device: its kind. On accelerators, which work in tiles, a rank between two that were timed
            costs what the upper one does.
    """
    step = _STEP_ON_CPU if device == "cpu" else None
    result = {}
    for layer in layers:
        case = case_of(layer, cost, batch_size)
        ranks = min(layer.shape) + 1
        if case is None:
            zeros = np.zeros(ranks, np.int64)
            result[layer.name] = LatencyTable(0, {"factors": zeros, "pivots": zeros})
            continue
        times, calls = known[case], cost.calls[layer.name]
        forms = {
            cast(Form, form): calls * layer_times.costs(table or {1: times.dense}, ranks, step)
            for form, table in times.forms.items()
        }
        result[layer.name] = LatencyTable(calls * times.dense, forms)
    return result
