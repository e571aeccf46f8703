"""Times that are worked out, not measured, so that tests don't depend on the machine. Shared by
tests."""

from __future__ import annotations

from pelacli.lowrank.find import low_rank_layers
from pelacli.measure.layer_times import LayerTimes, ranks_to_time
from pelacli.system.turns import Timing


class LowRankTakesLonger:
    """In the place of `pelacli.measure.latency.side_by_side`: a dense model takes 10 ms for each
    sample of the batch, a low-rank one 5 ms, and 12 ms more for each batch. So low rank is slower
    up to batches of two.

    Attributes:
        calls: (modules, inputs) of each call.
    """

    def __init__(self) -> None:
        self.calls = []

    def __call__(self, modules, inputs, predict, **_):
        for module in modules:
            predict(module.eval(), inputs)  # that it runs is a part of what is tested
        self.calls.append((modules, inputs))
        first = inputs if not isinstance(inputs, dict) else next(iter(inputs.values()))
        return [self._timing(module, len(first)) for module in modules]

    def _timing(self, module, samples):
        middle = 5.0 * samples + 12 if low_rank_layers(module) else 10.0 * samples
        return Timing(middle, middle - 1, middle + 1)


def pretended_layer_times(case, forms, device, dtype, *, compile=False):
    """In the place of `pelacli.measure.layer_times.measure`: 300 ns for each weight, but a square
    layer takes 50 ms at any rank."""
    weights = case.out * case.in_
    square = case.out == case.in_

    def low_rank(rank):
        return 50_000_000 if square else 300 * rank * (case.out + case.in_)

    tables = {form: {r: low_rank(r) for r in ranks_to_time(case, form)} for form in forms}
    return LayerTimes(300 * weights, tables)
