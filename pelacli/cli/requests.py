"""From the words of the command line to what a step is called with. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pelacli.console import info, warn
from pelacli.errors import RequestError
from pelacli.manifest import document, lookup
from pelacli.recipe import fields, flags, reading, stored
from pelacli.recipe.aliases import ALIASES
from pelacli.recipe.schema import Data, Decompose
from pelacli.recipe.step import Step, step_of
from pelacli.steps import pipeline


def decompose(
    model: str,
    top: Mapping[str, Any],
    section: Mapping[str, Any],
    overrides: Sequence[str],
    output: Path | None,
) -> Step[Decompose]:
    """MODEL and flags → the decompose step. Flags win over a recipe's own values.

    Args:
        top, section: flags for the recipe's top level and for [decompose]; None: not given.
        output: where to write; by default the recipe's place, or runs/MODEL-rRATIO.

    Raises:
        RequestError: flags that don't go together, or none that says how small.
    """
    given = {key: value for key, value in section.items() if value is not None}
    if "threshold" in given:
        given.setdefault("policy", "threshold")
    if model.endswith(".toml"):
        spec = reading.load(Path(model), overrides)
        spec = flags.with_flags(spec, "", **top)
        if "data" in given:
            given["data"] = _data(given["data"]["dataset"], spec.data)
            given["data"] = given["data"].model_dump(mode="json", exclude_unset=True)
        replaced = _replaced(spec.decompose, given)
        spec = flags.with_flags(spec, "decompose", instead_of=replaced, **given)
        step = step_of(spec, "decompose")
        lookup.require(step.source, step.name)
        return replace(step, output=output) if output else step
    if not _BUDGETS & set(given):
        raise RequestError(
            "decompose needs --ratio (how much smaller), --energy, --threshold, --max-drop or "
            "--plan"
        )
    full = ALIASES.get(model)
    if full is not None:
        info(f"{model} is {full}")
    place = output or Path("runs") / _name(model, given)
    base = {"model": model, "output": str(place), **top}
    spec = flags.from_flags(base, {"decompose": given}, overrides)
    return replace(step_of(spec, "decompose"), output=place)


_BUDGETS = {"ratio", "energy", "threshold", "max_drop", "plan"}
_MEASURED = {"data", "split", "task", "task_args"}  # what belongs to max_drop


def _replaced(own: Decompose | None, given: Mapping[str, Any]) -> set[str]:
    """The recipe's keys that have no say beside a budget that is given as a flag."""
    flags = _BUDGETS & set(given)
    if own is None or not flags:
        return set()
    found = {"energy", "max_drop", *_MEASURED}
    if flags & {"energy", "max_drop"}:
        found |= _BUDGETS
        if own.policy == "threshold":
            found.add("policy")
    if "max_drop" in flags:
        found -= _MEASURED
    return found


def refuse_without_sweep(flags: Mapping[str, Any]) -> None:
    """Refuse the flags of ``pela report`` that only a sweep knows.

    Raises:
        RequestError: one of them is given.
    """
    for name, value in flags.items():
        if value is not None:
            raise RequestError(f"--{name} {value}: belongs to --sweep, as in --sweep 0.9..0.3")


def pins(given: Sequence[str] | None) -> dict[str, int | str] | None:
    """["REGEX=RANK", …] → {regex: rank}."""
    if not given:
        return None
    found: dict[str, int | str] = {}
    for pin in given:
        pattern, equals, rank = pin.rpartition("=")
        if not equals or not (rank.isdigit() or rank in ("dense", "full")):
            raise RequestError(f"--pin {pin}: give REGEX=RANK, a number, 'dense' or 'full'")
        found[pattern] = int(rank) if rank.isdigit() else rank
    return found


def evaluations(
    refs: Sequence[str],
    given: Mapping[str, Any],
    dataset: str | None,
    how_given: Mapping[str, Any],
    overrides: Sequence[str],
) -> list[dict[str, Any]]:
    """Models and flags → the keyword arguments of each evaluation.

    An artefact is measured on the data of the recipe that made it, unless a flag says otherwise.

    Args:
        how_given: how to open plain models: weights, arch.
    """
    flags = {key: value for key, value in given.items() if value is not None}
    if "latency" in flags:
        flags["with_latency"] = flags.pop("latency")
    how = {key: value for key, value in how_given.items() if value is not None}
    jobs = []
    for ref in refs:
        if ref.endswith(".toml"):
            job = pipeline.evaluation(reading.load(Path(ref), overrides))
        else:
            data, task, task_args = _own_data(ref, needed=dataset is None)
            path = lookup.latest(Path(ref))
            job = {"ref": str(path or ref), "data": data, "task": task, "task_args": task_args}
            job["how"] = {} if path else how
        if flags.get("task") not in (None, job.get("task")):
            job["task_args"] = None
        job |= flags
        if dataset is not None:
            job["data"] = _data(dataset, job["data"])
        if flags.get("against") is not None:
            against = lookup.latest(Path(flags["against"]))
            job["against"] = str(against or flags["against"])
            job["how_against"] = {} if against else how
        jobs.append(job)
    return jobs


def _own_data(ref: str, *, needed: bool) -> tuple[Data | None, str | None, dict[str, Any] | None]:
    """(data, task, its settings) of the last step of an artefact that has data.

    Args:
        needed: no other data is given. Where it is, what can't be read is only noted.

    Raises:
        RequestError: the data is needed and can't be read.
    """
    path = lookup.latest(Path(ref))
    if path is None:
        return None, None, None
    for number, step in reversed([*enumerate(document.read(path).history)]):
        where = f"{path / document.FILE}: history[{number}].recipe"
        try:
            data, task, task_args = stored.data_and_task(step.recipe, step.step, where)
        except RequestError as error:
            if needed:
                raise RequestError(f"{error}, or give --data and --task") from None
            warn(str(error))
            break
        if data is not None:
            return data, task, task_args
    return None, None, None


def _data(dataset: str, base: Data | None) -> Data:
    if base is not None and base.dataset == dataset:
        return base
    return Data(dataset=dataset)


def _name(model: str, section: Mapping[str, Any]) -> str:
    """runs/vit_base-r0.50: the model's own name and the budget; f0.50 is a ratio of FLOPs."""
    stem = Path(model).name.removesuffix(".safetensors") or "model"
    flops = section.get("unit") == "flops"
    for key, letter in (("max_drop", "d"), ("energy", "e")):
        if key in section:
            return f"{stem}-{letter}{section[key]:g}{'-flops' if flops else ''}"
    if "ratio" in section:
        try:
            ratio = float(fields.parse_ratio(section["ratio"]))
            return f"{stem}-{'f' if flops else 'r'}{ratio:.2f}"
        except ValueError:
            return stem  # the recipe's validation has the better words for it
    if "threshold" in section:
        return f"{stem}-t{section['threshold']:g}"
    return f"{stem}-plan"
