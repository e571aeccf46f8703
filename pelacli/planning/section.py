"""A recipe's [decompose] section and spectra → a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pelacli.errors import RequestError
from pelacli.manifest.document import Manifest
from pelacli.ranks import plan as ranks_plan
from pelacli.ranks import planner
from pelacli.ranks.pins import Named, pins_by_name
from pelacli.ranks.plan import Plan, read_plan
from pelacli.ranks.spectrum import Spectrum
from pelacli.recipe import flags as recipe_flags
from pelacli.recipe.flags import StoredKeys
from pelacli.recipe.schema import Decompose
from pelacli.recipe.stored import known_keys

# Keys of [decompose] that the spectra depend on, or that need the weights.
OF_WEIGHTS = (
    "calibrate", "samples", "correct", "include", "exclude",
    "max_drop", "data", "split", "task", "task_args",
)  # fmt: skip
# … and those of which each says by itself how small.
BUDGETS = ("ratio", "threshold", "plan", "energy", "max_drop")


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
        fixed_params, fixed_flops: as `pelacli.ranks.planner.plan` takes them.
        obstacles, flop_obstacles: for budgets in parameters, and in FLOPs.

    Raises:
        RequestError: the section doesn't fit the layers, or its budget can't be met.
    """
    if section.plan is not None:
        plan = read_plan(section.plan)
        ranks_plan.check(plan, shapes, str(section.plan))
        if fixed_flops is None:  # a plan made where they were known has no use for them here
            plan = replace(plan, unit="params", limit=plan.limit if plan.unit == "params" else None)
        return planner.measure(plan, spectra, fixed_params=fixed_params, fixed_flops=fixed_flops)
    if section.unit == "flops" and fixed_flops is None:
        raise RequestError("the model's FLOPs are unknown; budget in parameters (--unit params)")
    return planner.plan(
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


def settings(
    section: Mapping[str, Any],
    given: Mapping[str, Any],
    where: str,
    overrides: Sequence[str] = (),
) -> Decompose:
    """The [decompose] section for planning from stored spectra.

    Args:
        section: the keys that were set when the spectra were made. Those that need the weights are
            passed over, as are those of another version, and its budget where another is given.
        given: flags, which win; None is not given.
        where: the spectra's file, for error messages.
        overrides: "decompose.key=value" each.

    Raises:
        RequestError: a flag that needs the weights or that is no good, or a stored value that this
            version can't read.
    """
    flags = {key: value for key, value in given.items() if value is not None}
    own = {key: value for key, value in section.items() if key not in OF_WEIGHTS}
    own = known_keys(own, ("decompose",), lambda key: f"{where}: {'.'.join(map(str, key))}")
    if any(key in flags for key in BUDGETS):
        own = {key: value for key, value in own.items() if key not in BUDGETS}
        if own.get("policy") == "threshold":
            del own["policy"]
    _only_plans(flags, where)
    if "threshold" in flags:
        flags.setdefault("policy", "threshold")
    top = {"model": where, "output": where}
    found = recipe_flags.from_flags(
        top,
        {"decompose": own | flags},
        overrides,
        StoredKeys(where, frozenset(("decompose", key) for key in own if key not in flags)),
    ).decompose
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
