"""The Python interface: load, save, plan and decompose any module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import nn

from pelacli import console
from pelacli.artefact import changes, description, loading, roundtrip, saving
from pelacli.errors import RequestError
from pelacli.factorize.batches import join
from pelacli.factorize.engine import Keep
from pelacli.lowrank.find import Selection
from pelacli.manifest.document import Manifest
from pelacli.models import heads, wrapping
from pelacli.models.opened import OpenModel
from pelacli.planning.choice import choose
from pelacli.ranks.budget import Scope, Unit
from pelacli.ranks.plan import Plan
from pelacli.recipe import validation
from pelacli.recipe.schema import Decompose
from pelacli.steps.dense import DenseModel, check_flops_known, examine
from pelacli.steps.factorization import SolvedModel, solve
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
    threshold: float | None = None,
    batches: Iterable[Any] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    head: Sequence[str] | None = None,
    pins: Mapping[str, Any] | None = None,
    min_rank: int = 1,
    max_rank: int | None = None,
    multiple: int | None = None,
) -> Plan:
    """The ranks that `decompose` would choose; the model stays as it is. Arguments as there."""
    settings = _settings(
        ratio=None if ratio is None else str(ratio),
        policy=policy,
        unit=unit,
        scope=scope,
        energy=energy,
        threshold=threshold,
        include=list(include),
        exclude=list(exclude),
        pin=dict(pins or {}),
        min_rank=min_rank,
        max_rank=max_rank,
        multiple=multiple,
    )
    with devices.on_cpu(model):
        solved = _solved(model, settings, batches, head, correct=False, only_plan=True)
        return choose(solved.spectra, solved.dense.size, settings)


def decompose(
    model: nn.Module,
    ratio: float | str | Fraction | None = None,
    policy: str = "energy",
    *,
    unit: Unit = "params",
    scope: Scope = "model",
    energy: float | None = None,
    threshold: float | None = None,
    batches: Iterable[Any] | None = None,
    correct: bool = True,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    head: Sequence[str] | None = None,
    pins: Mapping[str, Any] | None = None,
    min_rank: int = 1,
    max_rank: int | None = None,
    multiple: int | None = None,
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
        threshold, min_rank, max_rank, multiple: as in `pelacli.ranks.budget.Budget`.

    Returns:
        The plan: every layer's rank and kept energy.

    Raises:
        RequestError: the budget can't be met, the model is low-rank already, has nothing to
            factorise, or lies on several devices.
    """
    settings = _settings(
        ratio=None if ratio is None else str(ratio),
        policy=policy,
        unit=unit,
        scope=scope,
        energy=energy,
        threshold=threshold,
        include=list(include),
        exclude=list(exclude),
        pin=dict(pins or {}),
        min_rank=min_rank,
        max_rank=max_rank,
        multiple=multiple,
    )
    with devices.on_cpu(model):
        solved = _solved(model, settings, batches, head, correct=correct)
        plan = choose(solved.spectra, solved.dense.size, settings)
        manifest = _manifest(solved.dense, plan)
        solved.apply(plan, solved.corrected_factors(plan))
    if manifest is not None:
        setattr(model, _KEPT, (solved.dense.opened, manifest))
    return plan


def _settings(**values: Any) -> Decompose:
    """The arguments as the settings of [decompose], held to the same rules.

    Raises:
        RequestError: one of them is no good, or none says how small.
    """
    settings = validation.section(Decompose, values)
    if all(values[key] is None for key in ("ratio", "energy", "threshold")):
        raise RequestError(f"policy {settings.policy} needs a ratio")
    return settings


def _solved(
    model: nn.Module,
    settings: Decompose,
    batches: Iterable[Any] | None,
    head: Sequence[str] | None,
    *,
    correct: bool,
    only_plan: bool = False,
) -> SolvedModel:
    """The model's spectra, and what its factors will be made of."""
    samples = join(devices.move_batch(batch, "cpu") for batch in batches or ())
    opened = _kept(model)[0] or wrapping.wrap(model, must=False)
    if head is None:
        head = sorted(opened.head) if opened is not None else []
    dense = examine(
        model,
        Selection(head, settings.include, settings.exclude),
        type(model).__name__ if opened is None else opened.ref,
        opened,
        batch=samples[0] if samples and settings.unit == "flops" else None,
    )
    check_flops_known(
        dense, settings.unit, "; give batches to count them on, or budget in parameters"
    )
    keep = Keep.NOTHING if only_plan or (samples and correct) else Keep.PLANNED
    return solve(dense, samples, keep, correct=correct, show_progress=_no_progress)


def _manifest(dense: DenseModel, plan: Plan) -> Manifest | None:
    """What the plan will make of the model; None where its library is unknown."""
    if dense.opened is None:
        return None
    manifest = description.describe(dense.opened, dense.layers, dense.cost, plan)
    before = _kept(dense.module)[1]
    manifest.history = [] if before is None else before.history
    return manifest


@contextmanager
def _no_progress(description: str, total: float) -> Iterator[console.Progress]:
    """A library shows no progress of its own accord."""
    yield console.Progress()
