"""The Python interface: load, save, plan and decompose any module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import nn

from pelacli.artefact import changes, description, loading, roundtrip, saving
from pelacli.errors import RequestError
from pelacli.factorize import calibration, engine
from pelacli.factorize import refit as factorize_refit
from pelacli.factorize.batches import join
from pelacli.factorize.moments import Moments
from pelacli.lowrank import find
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.replace import Factors
from pelacli.manifest.document import Manifest
from pelacli.measure import flops
from pelacli.measure.flops import Cost, layer_flops
from pelacli.models import heads, wrapping
from pelacli.models.opened import OpenModel
from pelacli.models.prediction import predict
from pelacli.ranks import pins as ranks_pins
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget, Scope, Unit
from pelacli.ranks.plan import Plan
from pelacli.ranks.size import ModelSize
from pelacli.recipe.fields import parse_ratio
from pelacli.system import devices

# Where a module that `load` gave, or `decompose` changed, keeps what `save` needs.
_KEPT = "_pela"


def load(path: str | Path) -> nn.Module:
    """The model of an artefact, in eval mode on the CPU.

    Args:
        path: an artefact, or a run directory, which stands for its last step.

    Raises:
        RequestError: it is no artefact, or a file of it is damaged.
    """
    opened, described = loading.open(str(path))
    setattr(opened.module, _KEPT, (opened, described))
    return opened.module


def save(model: nn.Module, path: str | Path) -> None:
    """Write a model of timm or transformers as an artefact, as it is now.

    It may have changed since it was loaded or factorised: another head, other classes, trained.

    Raises:
        RequestError: the path holds something else, the model's library is unknown, or the model
            has a layer that its library would not build again; the message names it.
    """
    saving.check_output(Path(path))
    opened, before = _kept(model)
    opened = opened or wrapping.wrap(model)
    with devices.on_cpu(model):
        described = changes.current(opened, before)
        roundtrip.check_readable(opened, described)
        saving.save(opened, described, Path(path))


def _kept(model: nn.Module) -> tuple[OpenModel | None, Manifest | None]:
    """What is known of a module that `load` gave or `decompose` changed, its config, inputs and
    head as they are now; (None, None) of any other module."""
    opened, described = getattr(model, _KEPT, (None, None))
    return None if opened is None else heads.refreshed(opened), described


def plan(
    model: nn.Module,
    *,
    ratio: float | str | Fraction | None = None,
    policy: str = "energy",
    unit: Unit = "params",
    scope: Scope = "model",
    energy: float | None = None,
    batches: Iterable[Any] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    head: Sequence[str] | None = None,
    pins: Mapping[str, Any] | None = None,
    **limits: Any,
) -> Plan:
    """The ranks that `decompose` would choose; the model stays as it is. Arguments as there."""
    limits |= {"unit": unit, "energy": energy}
    with devices.on_cpu(model):
        samples = join(devices.move_batch(batch, "cpu") for batch in batches or ())
        return _prepare(
            model, ratio, policy, scope, samples, include, exclude, head, pins, limits,
            engine.Keep.NOTHING,
        ).plan  # fmt: skip


def decompose(
    model: nn.Module,
    ratio: float | str | Fraction | None = None,
    policy: str = "energy",
    *,
    unit: Unit = "params",
    scope: Scope = "model",
    energy: float | None = None,
    batches: Iterable[Any] | None = None,
    correct: bool = True,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    head: Sequence[str] | None = None,
    pins: Mapping[str, Any] | None = None,
    **limits: Any,
) -> Plan:
    """Factorise a module in place, on the CPU; where it was on another device, it is again after.

    Args:
        model: any ``nn.Module``, on one device.
        ratio: what is left of ``unit``, 0 < ratio ≤ 1; "2/3" and Fraction are exact.
        policy: "energy", "uniform", or "threshold" (then ``threshold=`` is the share to keep).
        unit: "params" or "flops": what the ratio counts. FLOPs are those of one sample: a plain
            one of timm's or transformers' models, else one of ``batches``.
        scope: "model", or "layers": whose it counts.
        energy: in place of a ratio: as small as keeps this share of all layers' energy together.
        batches: calibration samples, unlabelled: each a tensor [B, …] that the model takes, or a
            dict of its keyword arguments. A few hundred samples make all the difference. Small
            batches of equal shapes are joined to batches of up to 32 samples.
        correct: refit each layer to the inputs it really gets, where there are batches.
        include, exclude: regular expressions on module names.
        head: names of modules that stay dense; by default the output head, where it can be told.
        pins: regular expression → rank, "dense" or "full".
        limits: ``threshold``, ``min_rank``, ``max_rank``, ``multiple`` of
            `pelacli.ranks.budget.Budget`.

    Returns:
        The plan: every layer's rank and kept energy.

    Raises:
        RequestError: the budget can't be met, the model is low-rank already, has nothing to
            factorise, or lies on several devices.
    """
    limits |= {"unit": unit, "energy": energy}
    with devices.on_cpu(model):
        samples = join(devices.move_batch(batch, "cpu") for batch in batches or ())
        refit = correct and bool(samples)
        keep = engine.Keep.NOTHING if refit else engine.Keep.PLANNED
        found = _prepare(
            model, ratio, policy, scope, samples, include, exclude, head, pins, limits, keep
        )
        layers, moments, planned = found.layers, found.moments, found.plan.ranks()
        ready: Mapping[str, Factors] = {}
        if refit:
            ready = factorize_refit.correct(model, layers, planned, moments, samples, predict)
        engine.apply(model, layers, moments, found.plan, solutions=found.cuts, refitted=ready)
    if found.opened is not None:
        setattr(model, _KEPT, (found.opened, found.described))
    return found.plan


@dataclass
class _Prepared:
    """A model's layers, planned and still dense."""

    layers: list[Layer]
    cuts: Mapping[str, engine.Solution]
    moments: dict[str, Moments]
    plan: Plan
    opened: OpenModel | None
    described: Manifest | None


def _prepare(
    model: nn.Module,
    ratio: float | str | Fraction | None,
    policy: str,
    scope: Scope,
    samples: Sequence[Any],
    include: Sequence[str],
    exclude: Sequence[str],
    head: Sequence[str] | None,
    pins: Mapping[str, Any] | None,
    limits: dict[str, Any],
    keep: engine.Keep,
) -> _Prepared:
    kept, before = _kept(model)
    opened = kept or wrapping.wrap(model, must=False)
    if head is None:
        head = sorted(opened.head) if opened is not None else []
    ref = type(model).__name__ if opened is None else opened.ref
    layers = find.find_dense(model, find.Selection(head, include, exclude), ref)
    spent = None if opened is None else description.cost(opened, layers)
    layers = description.with_read_weights_dense(layers, spent)
    free = find.free_layers(layers, ref)
    if spent is None and limits["unit"] == "flops":
        if not samples:
            raise RequestError(
                f"{ref}: its FLOPs are unknown; give batches to count them on, "
                "or budget in parameters"
            )
        spent = _count(model, layers, samples[0])
    moments = calibration.collect(model, free, samples, predict) if samples else {}
    cuts = engine.solve(free, moments, keep=keep)
    try:
        exact = None if ratio is None else parse_ratio(str(ratio))
    except ValueError as error:
        raise RequestError(f"ratio: {error}") from None
    budget = Budget(
        policy=policy,
        ratio=exact,
        scope=scope,
        pins=ranks_pins.pins_by_name(free, pins or {}),
        **limits,
    )
    size = ModelSize(
        fixed_params=find.fixed_params(model, free),
        fixed_flops=None
        if spent is None
        else spent.total
        - sum(layer_flops(la.shape, spent.tokens.get(la.name, 0), None) for la in free),
        obstacles=description.obstacles(model, layers),
    )
    spectra = description.at_counted_tokens(engine.spectra(free, cuts, moments), spent)
    chosen = planner.plan(spectra, budget, size)
    described = None
    if opened is not None:
        described = description.describe(opened, layers, spent, chosen)
        described.history = [] if before is None else before.history
    return _Prepared(free, cuts, moments, chosen, opened, described)


def _count(model: nn.Module, layers: Sequence[Layer], batch: Any) -> Cost:
    """FLOPs of one sample of the batch."""
    inputs = next(iter(batch.values())) if isinstance(batch, Mapping) else batch
    return flops.count(model, layers, lambda m: predict(m, batch), len(inputs))
