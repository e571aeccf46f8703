"""A recipe's [decompose] section and spectra → plan → record. What needs no weights. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pelacli import ranks, recipe_file
from pelacli.errors import RequestError
from pelacli.manifest import Count, LayerRecord, Manifest
from pelacli.ranks import Pin, Plan, Spectrum
from pelacli.recipe import Decompose

# Keys of [decompose] that the spectra depend on, or that need the weights.
OF_WEIGHTS = (
    "calibrate", "samples", "correct", "include", "exclude",
    "max_drop", "data", "split", "task", "task_args",
)  # fmt: skip
# … and those of which each says by itself how small.
BUDGETS = ("ratio", "threshold", "plan", "energy", "max_drop")


class Named(Protocol):
    """Whatever bears a layer's name: a layer, or its spectrum."""

    @property
    def name(self) -> str: ...


def choose(
    spectra: Sequence[Spectrum],
    section: Decompose,
    *,
    shapes: Mapping[str, tuple[int, int]],
    fixed_params: int,
    fixed_flops: int | None,
    obstacles: Mapping[str, int],
    flop_obstacles: Mapping[str, int] | None = None,
) -> Plan:
    """The plan: read from a file where the section names one, else chosen by its policy.

    Args:
        spectra: of the layers that may be factorised.
        shapes: layer → (out, in), of all linear layers of the model.
        fixed_params, fixed_flops: as `pelacli.ranks.plan` takes them.
        obstacles, flop_obstacles: for budgets in parameters, and in FLOPs.

    Raises:
        RequestError: the section doesn't fit the layers, or its budget can't be met.
    """
    if section.plan is not None:
        plan = read_plan(section.plan)
        ranks.check(plan, shapes, str(section.plan))
        if fixed_flops is None:  # a plan made where they were known has no use for them here
            plan = replace(plan, unit="params", limit=plan.limit if plan.unit == "params" else None)
        return ranks.measure(plan, spectra, fixed_params=fixed_params, fixed_flops=fixed_flops)
    if section.unit == "flops" and fixed_flops is None:
        raise RequestError("the model's FLOPs are unknown; budget in parameters (--unit params)")
    return ranks.plan(
        spectra,
        policy=section.policy,
        ratio=section.budget,
        scope=section.scope,
        fixed_params=fixed_params,
        obstacles=obstacles if section.unit == "params" else flop_obstacles or {},
        threshold=section.threshold,
        min_rank=section.min_rank,
        max_rank=section.max_rank,
        multiple=section.multiple,
        pins=pins_by_name(spectra, section.pin),
        unit=section.unit,
        fixed_flops=fixed_flops,
        energy=section.energy,
    )


def fixed_flops(dense: Manifest, spectra: Sequence[Named]) -> int | None:
    """FLOPs that no plan changes: all but those of the layers that have spectra."""
    if dense.flops is None:
        return None
    names = {layer.name for layer in spectra}
    return dense.flops.before - sum(
        row.flops.before for row in dense.layers if row.name in names and row.flops is not None
    )


def flop_obstacles(dense: Manifest, spectra: Sequence[Named]) -> dict[str, int]:
    """Owner → FLOPs that no plan can touch."""
    names = {layer.name for layer in spectra}
    rest = 0 if dense.flops is None else dense.flops.before
    found = {}
    for row in dense.layers:
        if row.flops is not None:
            rest -= row.flops.before
            if row.name not in names:
                found[row.name] = row.flops.before
    return found | {"what is no linear layer": rest}


def read_plan(file: Path) -> Plan:
    """A plan from a JSON file, also from a manifest's or `--dry-run --json`'s list of layers."""
    try:
        document: Any = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{file}: can't be read: {error.strerror}") from None
    except ValueError as error:
        raise RequestError(f"{file}: not valid JSON ({error})") from None
    return Plan.from_dict(document, where=str(file))


def settings(
    section: Mapping[str, Any],
    given: Mapping[str, Any],
    where: str,
    overrides: Sequence[str] = (),
) -> Decompose:
    """The [decompose] section for planning from stored spectra.

    Args:
        section: the keys that were set when the spectra were made. Those that need the weights are
            passed over, and its budget where another is given.
        given: flags, which win; None is not given.
        where: the spectra's file, for error messages.
        overrides: "decompose.key=value" each.

    Raises:
        RequestError: a flag that needs the weights, or that is no good.
    """
    flags = {key: value for key, value in given.items() if value is not None}
    own = {key: value for key, value in section.items() if key not in OF_WEIGHTS}
    if any(key in flags for key in BUDGETS):
        own = {key: value for key, value in own.items() if key not in BUDGETS}
        if own.get("policy") == "threshold":
            del own["policy"]
    _only_plans(flags, where)
    if "threshold" in flags:
        flags.setdefault("policy", "threshold")
    top = {"model": where, "output": where}
    found = recipe_file.from_flags(top, {"decompose": own | flags}, overrides).decompose
    assert found is not None
    _only_plans(found.model_fields_set, where)
    return found


def _only_plans(keys: Iterable[str], where: str) -> None:
    for key in OF_WEIGHTS:
        if key in keys:
            raise RequestError(
                f"{where}: stored spectra can't tell what {key} would change; "
                f"leave it out, or decompose the model itself"
            )


def pins_by_name(layers: Sequence[Named], pins: Mapping[str, Pin]) -> dict[str, Pin]:
    """Regular expression → rank, resolved to layer → rank; the last match wins.

    Raises:
        RequestError: an expression matches no layer that can be factorised.
    """
    found: dict[str, Pin] = {}
    for pattern, rank in pins.items():
        names = [layer.name for layer in layers if re.search(pattern, layer.name)]
        if not names:
            raise RequestError(f"pin {pattern!r}: matches no layer that is factorised")
        found |= dict.fromkeys(names, rank)
    return found


def applied(dense: Manifest, plan: Plan) -> Manifest:
    """The record of what the plan makes of a dense model."""
    rows = [_applied(row, plan) for row in dense.layers]
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


def _applied(row: LayerRecord, plan: Plan) -> LayerRecord:
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
