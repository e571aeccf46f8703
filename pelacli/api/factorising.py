"""Plan and decompose any module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from pelacli import console
from pelacli.api import arguments
from pelacli.api.files import keep, kept
from pelacli.artefact import description
from pelacli.data import in_memory
from pelacli.factorize.engine import Keep
from pelacli.lowrank.find import Selection
from pelacli.lowrank.replace import replace
from pelacli.manifest.document import Manifest
from pelacli.models import precision, wrapping
from pelacli.models.opened import OpenModel
from pelacli.planning.choice import choose
from pelacli.planning.outcome import add_held_back_errors
from pelacli.ranks.budget import Scope, Unit
from pelacli.ranks.forms import Choice as FormChoice
from pelacli.ranks.plan import Plan
from pelacli.recipe.decompose import Decompose
from pelacli.steps.blockwise import Choice
from pelacli.steps.dense import DenseModel, check_flops_known, examine
from pelacli.steps.factorization import solve
from pelacli.steps.solved import SolvedModel
from pelacli.system import devices, processes


@arguments.suggesting
def plan(
    model: nn.Module,
    ratio: float | str | Fraction | None = None,
    policy: str = "energy",
    batches: Iterable[Any] | None = None,
    *,
    unit: Unit = "params",
    scope: Scope = "model",
    energy: float | None = None,
    threshold: float | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    head: Sequence[str] | None = None,
    pins: Mapping[str, Any] | None = None,
    min_rank: int = 1,
    max_rank: int | None = None,
    multiple: int | None = None,
    form: FormChoice = "auto",
    **budgets: Any,
) -> Plan:
    """The ranks that `decompose` would choose; the model stays as it is.

    Args:
        model, ratio, policy, batches, …: as there.

    Returns:
        The plan. Print it, or ask for its `ranks`, layer → rank.

    Raises:
        RequestError: as there.

    Example::

        >>> model = timm.create_model("test_vit")
        >>> planned = pelacli.plan(model, ratio=0.6)
        >>> planned.used <= planned.limit
        True
        >>> planned.layers["blocks.0.attn.qkv"].shape
        (192, 64)
    """
    arguments.dense_module(model)
    settings = arguments.settings(
        ratio=ratio,
        policy=policy,
        unit=unit,
        scope=scope,
        energy=energy,
        threshold=threshold,
        include=include,
        exclude=exclude,
        pins=pins,
        min_rank=min_rank,
        max_rank=max_rank,
        multiple=multiple,
        form=form,
        **budgets,
    )
    with torch.inference_mode(False), _at_home(model, batches) as (opened, samples):
        solved = _solved(opened, settings, samples, head, correct=False, only_plan=True)
        return choose(solved.spectra, solved.dense.size, settings)


@arguments.suggesting
def decompose(
    model: nn.Module,
    ratio: float | str | Fraction | None = None,
    policy: str = "energy",
    batches: Iterable[Any] | None = None,
    *,
    unit: Unit = "params",
    scope: Scope = "model",
    energy: float | None = None,
    threshold: float | None = None,
    correct: bool = True,
    blockwise: bool | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    head: Sequence[str] | None = None,
    pins: Mapping[str, Any] | None = None,
    min_rank: int = 1,
    max_rank: int | None = None,
    multiple: int | None = None,
    form: FormChoice = "auto",
    **budgets: Any,
) -> Plan:
    """Factorise a module in place, on the device where it is.

    Args:
        model: any ``nn.Module``, on one device.
        ratio: what is left of ``unit``, 0 < ratio ≤ 1; "2/3" and Fraction are exact.
        policy: "energy", "uniform", or "threshold" (then ``threshold=`` is the share to keep).
        batches: calibration samples: tensors [B, …] that the model takes, dicts of its arguments,
            (input, label) pairs of either with labels, which are left out, or a DataLoader; also
            one such batch alone. They have the model's precision and may be on any device; a model
            in half precision is computed with in float32, and stays in half precision. They are
            read once and kept, so give some: a few hundred samples make all the difference. Small
            batches of equal shapes are joined to batches of up to 32 samples.
        unit: "params" or "flops": what the ratio counts. FLOPs are those of one sample: a plain
            one of timm's or transformers' models, else one of ``batches``.
        scope: "model", or "layers": whose it counts.
        energy: in place of a ratio: as small as keeps this share, 0 to 1, of all layers' energy
            together.
        correct: refit each layer to the inputs it really gets, where there are batches.
        blockwise: calibrate block by block, with the states between the blocks on disk; unset:
            where memory is short.
        include, exclude: lists of regular expressions, searched in module names.
        head: names of modules that stay dense; by default the output head, where it can be told.
        pins: regular expression → rank, "dense" or "full".
        threshold, min_rank, max_rank, multiple, form: as in `pelacli.ranks.budget.Budget`.
        budgets: each further file of `pelacli.ranks.budgets` by its name, in place of a ratio.

    Returns:
        The plan: every layer's rank and kept energy.

    Raises:
        RequestError: an argument is no good, the budget can't be met, the model fails on the
            batches, is low-rank already, has nothing to factorise, or lies on several devices.
            After this and any other error, Ctrl-C too, the model is as it was.

    Example::

        >>> model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        >>> plan = pelacli.decompose(model, ratio=0.5, batches=torch.randn(64, 16, 32))
        >>> sum(p.numel() for p in model.parameters()) <= plan.limit < plan.total
        True
        >>> model[0].rank == plan.ranks()["0"]
        True
        >>> pelacli.decompose(model, ratio=0.5)
        Traceback (most recent call last):
        pelacli.errors.RequestError: Sequential: is low-rank already; decompose the dense model
    """
    arguments.dense_module(model)
    settings = arguments.settings(
        ratio=ratio,
        policy=policy,
        unit=unit,
        scope=scope,
        energy=energy,
        threshold=threshold,
        include=include,
        exclude=exclude,
        pins=pins,
        min_rank=min_rank,
        max_rank=max_rank,
        multiple=multiple,
        form=form,
        **budgets,
    )
    arguments.switch("correct", correct)
    if blockwise is not None:
        arguments.switch("blockwise", blockwise)
    with torch.inference_mode(False), _at_home(model, batches) as (opened, samples):
        solved = _solved(opened, settings, samples, head, correct=correct, blockwise=blockwise)
        plan = choose(solved.spectra, solved.dense.size, settings)
        manifest = _manifest(solved.dense, plan)
        # All factors before the first layer is exchanged: what fails, leaves the model as it was.
        fit = solved.fit(plan)
        add_held_back_errors(manifest, fit.layer_errors)
        replace(model, fit.factors)
    keep(solved.dense.opened, manifest)
    return plan


@contextmanager
def _at_home(model: nn.Module, batches: Any) -> Iterator[tuple[OpenModel, list[Any]]]:
    """The model, and the samples where it is. They come first: a caller's loader may use the model.

    For the time of the block a model in half precision is in float32, where there are samples to
    run it on. Apple's devices have no double precision, so there both are on the CPU.
    """
    samples = arguments.samples(batches)
    device = devices.home(model)
    if device.type == "mps":
        device = torch.device("cpu")
    opened = kept(model)[0] or wrapping.wrap(model)
    exact = precision.float32_meanwhile(opened) if samples else nullcontext()
    # Whoever calls this in one process of several does not mean the others.
    with devices.placed(model, device), exact, processes.alone():
        yield opened, precision.batch_in_float32(devices.move_batch(samples, device))


def _solved(
    opened: OpenModel,
    settings: Decompose,
    samples: list[Any],
    head: Sequence[str] | None,
    *,
    correct: bool,
    blockwise: bool | None = None,
    only_plan: bool = False,
) -> SolvedModel:
    """The model's spectra, and what its factors will be made of."""
    model = opened.module
    unit, _ = settings.counted
    head = sorted(opened.head) if head is None else arguments.modules_of(model, "head", head)
    run = in_memory.predicting(opened.ref, model)
    dense = examine(
        model,
        Selection(head, settings.include, settings.exclude),
        opened.ref,
        opened,
        batch=samples[0] if samples and unit == "flops" else None,
        run=run,
    )
    check_flops_known(dense, unit, "; give batches to count them on, or budget in parameters")
    planned = Keep.PLANNED if settings.form == "factors" else Keep.ALL
    keep = Keep.NOTHING if only_plan else planned
    return solve(
        dense,
        samples,
        keep,
        correct=correct,
        show_progress=_no_progress,
        run=run,
        choice=Choice(blockwise),
    )


def _manifest(dense: DenseModel, plan: Plan) -> Manifest:
    """What the plan will make of the model."""
    manifest = description.describe(dense.opened, dense.layers, dense.cost, plan)
    before = kept(dense.module)[1]
    manifest.history = [] if before is None else before.history
    return manifest


@contextmanager
def _no_progress(description: str, total: float) -> Iterator[console.Progress]:
    """A library shows no progress of its own accord."""
    yield console.Progress()
