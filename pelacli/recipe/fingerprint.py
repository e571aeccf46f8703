"""What decides the result of a step, as one digest. No torch.

By it `pela run` knows whether a step is done, and a training step whether it may go on with an
unfinished run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pelacli.recipe.decompose import Decompose
from pelacli.recipe.step import Step

# These change how a result is computed, and not what it is; or whether there is one: a run that a
# bad sample stopped goes on with on_bad_sample = "skip".
_NO_EFFECT = {
    "workers", "compile", "checkpointing", "save_every", "keep", "log_every", "trackers",
    "blockwise", "on_bad_sample",
}  # fmt: skip
# The keys of a recipe's top level that count in every step.
_TOP = ("model", "weights", "arch", "model_args", "num_classes", "seed")


def fingerprint(step: Step[Any], inputs: str) -> str:
    """What decides the result of a step, as a SHA-256.

    Artefacts bear these digests: where one changes, `pela run` does the step again.

    Args:
        inputs: digest of the weights that the step starts from.
    """
    section = _section(step)
    data = step.data.model_dump(mode="json", exclude=_NO_EFFECT) if step.data else {}
    if size := section.pop("batch_size", None):
        data["batch_size"] = size
    if _has_decompose(step):
        data = _decompose_data(step)
    parts = {key: step.document[key] for key in _TOP}
    parts |= {"task": step.task.name, "section": section, "data": data, "inputs": inputs}
    if step.task.settings:
        parts["task_args"] = step.task.settings
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _section(step: Step[Any]) -> dict[str, Any]:
    """What counts of the step's section; its task and data are noted apart from it."""
    whole = step.document[step.name] or {}
    left_out = _NO_EFFECT | {"task", "task_args", "data"}
    if whole.get("result") != "best":  # only "best" chooses among the evaluations
        left_out |= {"eval_every"}
    section = {key: value for key, value in whole.items() if key not in left_out}
    if section.get("precision") == "fp32":  # what it is called in the digests of all artefacts
        section["precision"] = "no"
    if section.get("dropout"):  # as all runs were before there was a choice
        del section["dropout"]
    if _has_decompose(step):
        section["ratio"] = str(step.settings.budget)  # 0.5 and 1/2 are the same ratio
        section["plan"] = _digest(step.settings.plan)  # people edit a plan and keep its name
        del section["split"]
        if section["form"] == "factors":  # as all artefacts were before there was a choice
            del section["form"]
        measured_on = section.pop("latency")
        if step.settings.counted[0] == "latency":  # else nothing reads it
            section["latency"] = {"device": step.device, "conditions": measured_on}
    return section


def _has_decompose(step: Step[Any]) -> bool:
    """Whether this is a decompose step of a recipe that has the section."""
    return step.name == "decompose" and step.document["decompose"] is not None


def _decompose_data(step: Step[Decompose]) -> dict[str, Any]:
    """The data that counts in a decompose step: what it calibrates and measures the drop on."""
    counted: dict[str, Any] = {}
    if step.settings.calibrate == "train" and step.calibration is not None:
        counted |= step.calibration.data.model_dump(include={"dataset", "train", "image_size"})
    if step.settings.max_drop is not None and step.data is not None:
        measured = step.data.model_dump(mode="json", include={"dataset", "image_size"})
        measured["split"] = step.settings.split or step.data.val
        measured["crop_pct"] = step.data.augment.crop_pct
        counted["max_drop"] = measured
    return counted


def _digest(file: Path | None) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() if file is not None else None
    except OSError:
        return None  # the step itself will say so
