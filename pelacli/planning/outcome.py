"""The manifest of what a plan makes of a dense model."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pelacli.manifest.document import Count, LayerRecord, Manifest
from pelacli.ranks.forms import dense_weights, weights
from pelacli.ranks.plan import LayerPlan, Plan


def planned_manifest(dense: Manifest, plan: Plan) -> Manifest:
    """The manifest of a dense model, as it is after the plan.

    Layers that the plan does not name stay as they are.
    """
    rows = [_planned_row(row, plan.layers.get(row.name)) for row in dense.layers]
    saved = sum(row.params.before - row.params.after for row in rows)
    saved_flops = sum(row.flops.before - row.flops.after for row in rows if row.flops is not None)
    flops = None
    if dense.flops is not None:
        flops = Count(before=dense.flops.before, after=dense.flops.before - saved_flops)
    return dense.model_copy(
        update={
            "policy": plan.policy,
            "scope": plan.scope,
            "unit": plan.unit,
            "ratio": plan.ratio,
            "params": Count(before=dense.params.before, after=dense.params.before - saved),
            "flops": flops,
            "energy": plan.energy,
            "layers": rows,
        }
    )


def add_held_back_errors(manifest: Manifest, errors: Mapping[str, float]) -> None:
    """Say in the manifest how far the layers' outputs are from the dense model's.

    Args:
        errors: layer → its relative error on held-back samples, of those that it is known of.
    """
    known = {name: error for name, error in errors.items() if math.isfinite(error)}
    # New rows: those that a plan leaves alone are the dense model's.
    manifest.layers = [
        row.model_copy(update={"held_back_error": known.get(row.name)}) for row in manifest.layers
    ]


def _planned_row(row: LayerRecord, layer: LayerPlan | None) -> LayerRecord:
    if layer is None:
        return row
    before = stored = dense_weights(row.shape)
    if layer.rank is not None and layer.form is not None:
        stored = weights(row.shape, layer.rank, layer.form)

    def after(count: Count) -> Count:
        per_weight = count.before // before
        return Count(before=count.before, after=per_weight * stored)

    return row.model_copy(
        update={
            "rank": layer.rank,
            "form": layer.form,
            "reason": layer.reason,
            "energy": layer.energy,
            "params": after(row.params),
            "flops": None if row.flops is None else after(row.flops),
        }
    )
