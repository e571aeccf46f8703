"""Spectra and the settings of [decompose] → a plan, chosen by its policy or read from its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pelacli.errors import RequestError
from pelacli.ranks import plan_file, planner
from pelacli.ranks.budget import Budget
from pelacli.ranks.budgets import registry
from pelacli.ranks.forms import Form
from pelacli.ranks.pins import pins_by_name
from pelacli.ranks.plan import Plan
from pelacli.ranks.prices import LatencyTable
from pelacli.ranks.size import ModelSize
from pelacli.ranks.spectrum import Spectrum
from pelacli.recipe.decompose import Decompose


def choose(
    spectra: Sequence[Spectrum],
    size: ModelSize,
    settings: Decompose,
    tables: Mapping[str, LatencyTable] | None = None,
    forms: Mapping[str, Form] | None = None,
) -> Plan:
    """The plan that the settings give.

    Args:
        spectra: of the layers that may be factorised.
        size: of the model; `pelacli.planning.stored.About.size` has that of stored spectra.
        tables: layer → its times, where the budget counts time.
        forms: layer → its form where that is settled; a plan from a file has its own.

    Raises:
        RequestError: the settings don't fit the layers, or their budget can't be met.
    """
    if settings.plan is not None:
        plan = plan_file.read(settings.plan)
        plan_file.check(plan, size.shapes, str(settings.plan))
        if not _is_known(plan.unit, size, tables):  # a plan that was made where it was
            plan = replace(plan, unit="params", limit=None)
        return planner.measure(plan, spectra, size, tables)
    unit = settings.counted[0]
    if not _is_known(unit, size, tables):
        what = {"flops": "FLOPs are", "latency": "latency is"}[unit]
        raise RequestError(f"the model's {what} unknown; budget in parameters (--unit params)")
    wanted = replace(budget(spectra, settings), forms=forms or {})
    return planner.plan(spectra, wanted, size, tables)


def _is_known(unit: str, size: ModelSize, tables: Mapping[str, LatencyTable] | None) -> bool:
    if unit == "latency":
        return bool(tables) and size.fixed_latency is not None
    return unit == "params" or size.fixed_flops is not None


def budget(spectra: Sequence[Spectrum], settings: Decompose) -> Budget:
    """The budget of the settings, their pins resolved to the layers that have spectra.

    Raises:
        RequestError: a pin matches no layer, or values don't go together.
    """
    asked: dict[str, Any] = {}
    for name, value in settings.budgets.items():
        asked |= registry.get(name).asks(value)
    unit, scope = settings.counted
    return Budget(
        **asked,
        policy=settings.policy,
        unit=unit,
        scope=scope,
        min_rank=settings.min_rank,
        max_rank=settings.max_rank,
        multiple=settings.multiple,
        form=settings.form,
        pins=pins_by_name(spectra, settings.pin),
    )
