"""Let pass what has lost no more than it may, of what `pelacli.steps.eval` has measured."""

from __future__ import annotations

from collections.abc import Sequence

from pelacli.errors import GateError, RequestError
from pelacli.steps.eval import Evaluated


def check(results: Sequence[Evaluated]) -> None:
    """Raise `GateError` for the first result that dropped by more than it may."""
    for result in results:
        if result.max_drop is None:
            continue
        if result.drop is None:
            raise RequestError(f"{result.artefact}: --max-drop: {_no_drop(result)}")
        if not result.drop <= result.max_drop:  # NaN does not pass
            raise GateError(
                f"{result.artefact}: {_dropped(result)} drops by {result.drop:.2f} points, "
                f"more than the {result.max_drop:g} allowed"
            )


def _dropped(result: Evaluated) -> str:
    """What the gate holds, in words."""
    if result.main_metric is not None:
        return result.main_metric
    return f"agreement with the dense model ({result.drop_of})"


def _no_drop(result: Evaluated) -> str:
    """Why there is no figure that drops, and what would give one."""
    assert result.baseline is not None
    if result.main_metric is not None:
        return (
            f"{result.baseline['artefact']} has no {result.main_metric} to drop from; name a "
            "baseline for the same task, or --task unlabelled to hold the agreement of both"
        )
    return (
        "there are no labels, and the outputs of both models can't be compared; give --data with "
        "labels, and their --task"
    )
