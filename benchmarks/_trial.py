"""One architecture put through what pela does with a model, and what came of it."""

from __future__ import annotations

import copy
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pelacli import artefact, engine, flops, losses, lowrank, models, ranks, record, taps
from pelacli.errors import PelaError
from pelacli.flops import Cost
from pelacli.lowrank import Layer
from pelacli.manifest import Manifest
from pelacli.models import OpenModel

HALF = Fraction(1, 2)
LARGEST = 40e6  # parameters
GAIN = 0.001  # share of the loss that the step is to take away, to first order
DENSE_ERROR = 1e-3  # that full rank may have, relative to the largest entry of the output


@dataclass(frozen=True)
class Case:
    """An architecture to try.

    Attributes:
        library: "timm" or "transformers".
        name: what the table calls it.
        ref: what pela opens.
        group: the timm module or transformers' model type.
        args: gives ``model_args``; called when its turn comes.
    """

    library: str
    name: str
    ref: str
    group: str
    args: Callable[[], dict[str, Any]] = dict


@dataclass
class Outcome:
    """What came of it; ``status`` is "works", "refused" (pela said why) or "broken"."""

    library: str
    name: str
    group: str
    status: str = "works"
    stage: str = ""
    why: str = ""
    params: int = 0
    layers: int = 0
    factorised: int = 0
    dense: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Failure(Exception):
    """Something that pela promises does not hold."""


def run(case: Case) -> dict[str, Any]:
    """Try one architecture. Nothing is raised: what went wrong stands in the row."""
    outcome, start = Outcome(case.library, case.name, case.group), time.perf_counter()
    try:
        _try(case, outcome)
    except PelaError as error:
        outcome.status, outcome.why = "refused", str(error)
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")
        outcome.status, outcome.why = "broken", f"{type(error).__name__}: {first[:200]}"
    outcome.seconds = round(time.perf_counter() - start, 1)
    return asdict(outcome)


def _try(case: Case, outcome: Outcome) -> None:
    outcome.stage = "open"
    args = case.args()
    shapes = models.open(case.ref, weights="random", model_args=args, meta=True)
    _demand(shapes.params < LARGEST, f"{shapes.params / 1e6:.0f} M parameters: not tiny")
    opened = models.open(case.ref, weights="random", model_args=args)
    outcome.params = opened.params
    stir(opened.module)
    outcome.stage = "layers"
    layers = lowrank.find_layers(opened.module, head=opened.head)
    outcome.layers = len(layers)
    if all(layer.reason for layer in layers):
        _describe(layers, outcome)
        outcome.status, outcome.why = "left out", "no linear layer that may be factorised"
        return
    outcome.stage = "run"
    batch = sample(opened)
    dense = outputs(opened.module, batch)
    _demand(all(bool(t.isfinite().all()) for t in dense), "the dense output is not finite")
    spent = _count(opened, layers)
    layers = record.settled(layers, spent)
    free = [layer for layer in layers if layer.reason is None]
    _describe(layers, outcome)
    outcome.stage = "decompose"
    cuts = engine.decompositions(free, {}, full=True)
    spectra = engine.spectra(free, cuts, {})
    fixed = engine.fixed_params(opened.module, free)

    def cut(**how: Any) -> tuple[OpenModel, Manifest]:
        plan = ranks.plan(spectra, fixed_params=fixed, **how)
        small = copy.copy(opened)
        small.module = copy.deepcopy(opened.module)
        lowrank.replace(small.module, engine.factors(free, cuts, {}, plan))
        return small, record.describe(opened, layers, spent, plan)

    outcome.stage = "full rank"
    pins: Any = {layer.name: "full" for layer in free}
    whole, _ = cut(policy="threshold", threshold=1.0, ratio=None, pins=pins)
    ours = outputs(whole.module, batch)
    worst = max(_distance(a, b) for a, b in zip(ours, dense, strict=True))
    _demand(worst < DENSE_ERROR, f"full rank is {worst:.1e} from dense")
    outcome.stage = "half"
    small, described = cut(policy="uniform", ratio=HALF, scope="layers")
    counted = sum(p.numel() for p in small.module.parameters())
    _demand(counted == described.params.after, f"{counted} parameters, not as reported")
    expected = outputs(small.module, batch)
    changed = max(_distance(a, b) for a, b in zip(expected, dense, strict=True))
    _demand(changed > 0, "the factors change nothing in the output")
    outcome.stage = "FLOPs"
    again, told = _count(small, []), described.flops
    assert told is not None
    if again.total != told.after and _routes(opened, layers, spent, batch):
        outcome.notes.append("the FLOPs depend on the sample: tokens are routed by value")
    elif again.total != told.after:
        raise Failure(f"{again.total} FLOPs, reported as {told.after} of {told.before}")
    outcome.stage = "save and load"
    with tempfile.TemporaryDirectory() as folder:
        artefact.save(small, described, Path(folder) / "a")
        back = artefact.load(Path(folder) / "a")
    again_out = outputs(back.module, batch)
    same = all(torch.equal(a, b) for a, b in zip(again_out, expected, strict=True))
    _demand(same and len(again_out) == len(expected), "loaded, its outputs differ")
    _demand(back.manifest == described, "loaded, its manifest differs")
    _demand(back.opened.inputs == opened.inputs, "loaded, its inputs differ")
    outcome.stage = "distil"
    before, after = step(back.module, opened.module, batch)
    _demand(after < before, f"a step takes the loss from {before:.6g} to {after:.6g}")
    outcome.stage = ""


def _count(opened: OpenModel, layers: Sequence[Layer]) -> Cost:
    """As `record.cost`, which only warns where it can't."""
    return flops.count(
        opened.module, layers, lambda m: models.predict(m, models.example(opened))
    )


def _routes(opened: OpenModel, layers: Sequence[Layer], spent: Cost, batch: Any) -> bool:
    """Whether the dense model itself takes another way for another sample."""
    other = flops.count(opened.module, layers, lambda m: models.predict(m, batch), 2)
    return other.tokens != spent.tokens


def _describe(layers: Sequence[Layer], outcome: Outcome) -> None:
    outcome.factorised = sum(layer.reason is None for layer in layers)
    outcome.dense = dict(Counter(_kind(layer.reason) for layer in layers if layer.reason))


def _kind(reason: str) -> str:
    """A reason without the name of the other layer."""
    return reason.partition(" to ")[0].partition(" with ")[0]


def stir(module: nn.Module) -> None:
    """Add noise to the weights: fresh models are almost constant functions, and their layers
    would not count."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.is_floating_point():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(0.1 * noise if parameter.ndim < 2 else 0.03 * noise)


def sample(opened: OpenModel) -> Any:
    """Two samples of noise in the shape of the model's example."""
    generator = torch.Generator().manual_seed(2)
    batch = models.example(opened)

    def fill(name: str, one: Tensor) -> Tensor:
        both = torch.cat([one, one])
        if both.is_floating_point():
            return torch.randn(both.shape, generator=generator)
        if name.endswith("input_ids"):
            ids = torch.randint(5, 100, both.shape, generator=generator)
            ids[:, -1] = both[:, -1]  # what models that pool at the last token look for
            return torch.where(both == 0, ids, both)
        return both

    if isinstance(batch, Tensor):
        return fill("", batch)
    return {name: fill(name, value) for name, value in batch.items()}


def outputs(module: nn.Module, batch: Any) -> list[Tensor]:
    """All floating-point tensors that the module returns."""
    torch.manual_seed(0)
    with torch.no_grad():
        models.predict(module, batch)
        torch.manual_seed(0)
        found = module(**batch) if isinstance(batch, dict) else module(batch)
    return [t for t in tree_leaves(found) if isinstance(t, Tensor) and t.is_floating_point()]


def step(student: nn.Module, teacher: nn.Module, batch: Any) -> tuple[float, float]:
    """The feature loss before and after a step down its gradient, in training mode, with the same
    dropout in both passes.

    The step is plain: Adam's first one moves what has next to no gradient as far as all else, and
    so may harm the taps that are right already.
    """
    teacher.eval().requires_grad_(False)
    names = taps.choose(student, None)
    student.train()

    def loss() -> Tensor:
        with torch.no_grad(), taps.caught(teacher, names) as theirs:
            _seeded(teacher, batch)
        with taps.caught(student, names) as ours:
            _seeded(student, batch)
        return losses.feature(
            [t for name in names for t in ours[name]], [t for name in names for t in theirs[name]]
        )

    before = loss()
    before.backward()
    gradients = [(p, p.grad) for p in student.parameters() if p.grad is not None]
    square = sum(float(g.square().sum()) for _, g in gradients)
    with torch.no_grad():
        for parameter, gradient in gradients:
            parameter.sub_(gradient, alpha=GAIN * before.item() / square)
        return before.item(), loss().item()


def _seeded(module: nn.Module, batch: Any) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    models.predict(module, batch)


def _distance(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        raise Failure(f"outputs of {tuple(a.shape)} and {tuple(b.shape)}")
    if not a.numel():
        return 0.0
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-6))


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Failure(otherwise)
