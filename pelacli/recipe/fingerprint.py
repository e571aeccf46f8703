"""What decides the result of a step, as one digest: is it done already, may it go on? No torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pelacli.recipe.schema import Decompose, Recipe, resolved, task_of

# What changes how a result is come by, and not the result.
_NO_EFFECT = {
    "workers", "compile", "checkpointing", "save_every", "keep", "log_every", "trackers",
}  # fmt: skip


def fingerprint(recipe: Recipe, section: str, inputs: str) -> str:
    """What decides the result of a step, as a SHA-256.

    Args:
        section: the step's, as "decompose".
        inputs: digest of the weights that the step starts from.
    """
    whole = resolved(recipe)
    top = ("model", "weights", "arch", "model_args", "num_classes", "seed")
    own = {key: value for key, value in (whole[section] or {}).items() if key not in _NO_EFFECT}
    own.pop("task", None), own.pop("task_args", None)
    if own.get("result") != "best":  # "best" chooses among the evaluations
        own.pop("eval_every", None)
    task, task_args = task_of(recipe, getattr(recipe, section))
    data = own.pop("data", None) or whole["data"] or {}
    data = {key: value for key, value in data.items() if key not in _NO_EFFECT}
    if size := own.pop("batch_size", None):
        data["batch_size"] = size
    if section == "decompose" and recipe.decompose is not None:
        data = _decompose_data(recipe, recipe.decompose)
        own["ratio"] = str(recipe.decompose.budget)  # 0.5 and 1/2 are one ratio
        own["plan"] = _digest(recipe.decompose.plan)  # people edit it under its old name
        del own["split"]
    parts = {key: whole[key] for key in top}
    parts |= {"task": task, "section": own, "data": data, "inputs": inputs}
    if task_args:
        parts["task_args"] = task_args
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _decompose_data(recipe: Recipe, section: Decompose) -> dict[str, Any]:
    """It sees no more of the data than what it calibrates on, and measures the drop on."""
    found: dict[str, Any] = {}
    if section.calibrate == "train" and recipe.data is not None:
        found |= recipe.data.model_dump(include={"dataset", "train", "image_size"})
    data = section.data or recipe.data
    if section.max_drop is not None and data is not None:
        seen = data.model_dump(mode="json", include={"dataset", "image_size"})
        crop = data.augment.crop_pct
        found["max_drop"] = seen | {"split": section.split or data.val, "crop_pct": crop}
    return found


def _digest(file: Path | None) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() if file is not None else None
    except OSError:
        return None  # the step itself will say so
