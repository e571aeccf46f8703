"""What a step of a run has measured, out of the record that its artefact has of it. No torch."""

from __future__ import annotations

from typing import Any

from pelacli.manifest.document import StepRecord

# In a record of training beside the figures of its evaluation.
_OTHERS = {"steps", "losses", "start", "decided_by", "best_step", "helped", "rate_search"}
# Of `pelacli.measure.held_back.Distance`, the first that there is.
_OF_HELD_BACK = {"perplexity": "perplexity", "relative_error": "relative error"}


def figures(record: StepRecord) -> dict[str, Any]:
    """As JSON has them: ``metrics``, and ``start`` where the step measured what went in too."""
    known = record.metrics
    if record.step == "decompose":
        held_back = known.get("held_back") or {}
        return {"metrics": {k: v for k, v in held_back.items() if not isinstance(v, dict)}}
    metrics = {name: value for name, value in known.items() if name not in _OTHERS}
    return {"metrics": metrics} | ({"start": known["start"]} if known.get("start") else {})


def line(record: StepRecord) -> str:
    """For people, the figure that decides; "" where nothing was measured."""
    metrics, start = (figures(record).get(key) or {} for key in ("metrics", "start"))
    if record.step == "decompose":
        return _of_held_back(metrics)
    numbers = [name for name, value in metrics.items() if isinstance(value, int | float)]
    if not numbers:
        return ""
    name = record.metrics.get("decided_by", numbers[0])
    before = f"{start[name]:.4g} → " if name in start else ""
    return f"{name.replace('_', ' ')} {before}{metrics[name]:.4g}"


def _of_held_back(metrics: dict[str, Any]) -> str:
    for name, shown in _OF_HELD_BACK.items():
        if name in metrics:
            text = f"{shown} {metrics[name]:.4g} on {metrics['samples']} held-back samples"
            dense = metrics.get(f"dense_{name}")
            return text if dense is None else f"{text} (dense {dense:.4g})"
    return ""
