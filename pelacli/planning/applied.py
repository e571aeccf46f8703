"""What a plan makes of a dense model, as a manifest."""

from __future__ import annotations

from typing import Any

from pelacli.manifest.document import Count, LayerRecord, Manifest
from pelacli.ranks.plan import Plan


def applied(dense: Manifest, plan: Plan) -> Manifest:
    """The record of what the plan makes of a dense model."""
    rows = [_layer_applied(row, plan) for row in dense.layers]
    saved = sum(row.params.before - row.params.after for row in rows)
    saved_flops = sum(row.flops.before - row.flops.after for row in rows if row.flops is not None)
    totals: dict[str, Any] = {
        "params": Count(before=dense.params.before, after=dense.params.before - saved),
        "flops": dense.flops
        and Count(before=dense.flops.before, after=dense.flops.before - saved_flops),
    }
    asked = {"policy": plan.policy, "scope": plan.scope, "unit": plan.unit, "ratio": plan.ratio}
    update = {**asked, **totals, "energy": plan.energy, "layers": rows}
    return dense.model_copy(update=update)


def _layer_applied(row: LayerRecord, plan: Plan) -> LayerRecord:
    entry = plan.layers.get(row.name)
    if entry is None:
        return row
    out, in_ = row.shape
    width = out * in_ if entry.rank is None else entry.rank * (out + in_)

    def cost(count: Count) -> Count:
        return Count(before=count.before, after=count.before // (out * in_) * width)

    update = {
        "rank": entry.rank,
        "reason": entry.reason,
        "energy": entry.energy,
        "params": cost(row.params),
        "flops": None if row.flops is None else cost(row.flops),
    }
    return row.model_copy(update=update)
