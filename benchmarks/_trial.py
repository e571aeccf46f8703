"""One architecture put through what pela does with a model, and what came of it."""

from __future__ import annotations

import copy
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pelacli.artefact import description, loading, saving
from pelacli.errors import PelaError
from pelacli.factorize import engine
from pelacli.lowrank import find
from pelacli.lowrank import replace as lowrank_replace
from pelacli.lowrank.layer import Layer
from pelacli.measure import flops
from pelacli.measure.flops import Cost
from pelacli.models import examples, opening, prediction
from pelacli.models import outputs as models_outputs
from pelacli.models.opened import OpenModel
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget
from pelacli.ranks.plan import Plan
from pelacli.ranks.size import ModelSize
from pelacli.train import losses, taps

FEWEST = 4  # linear layers of what may be called a Transformer; a network of convolutions has less
HALF = Fraction(1, 2)
LARGEST = 70e6  # parameters; tried at its full size where a constructor leaves no choice
# Share of the loss that the step is to take away, to first order. A loss that jumps where another
# box is picked, or that bends at once, wants a smaller one.
GAINS = (1e-3, 1e-4, 1e-5)
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
        inputs: gives a batch of one sample for a configuration, where pela can't guess one.
    """

    library: str
    name: str
    ref: str
    group: str
    args: Callable[[], dict[str, Any]] = dict
    inputs: Callable[[Any], dict[str, Tensor]] | None = None


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


class BrokenPromiseError(Exception):
    """Something that pela promises does not hold."""


def run(case: Case) -> dict[str, Any]:
    """Try one architecture. Nothing is raised: what went wrong stands in the row."""
    outcome, start = Outcome(case.library, case.name, case.group), time.perf_counter()
    try:
        _try(case, outcome)
    except PelaError as error:
        outcome.status, outcome.why = "refused", str(error)
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")[:200]
        kept = isinstance(error, BrokenPromiseError)
        outcome.status, outcome.why = (
            "broken",
            first if kept else f"{type(error).__name__}: {first}",
        )
    outcome.seconds = round(time.perf_counter() - start, 1)
    return asdict(outcome)


def _try(case: Case, outcome: Outcome) -> None:
    outcome.stage = "open"
    args = case.args()
    shapes = opening.open(case.ref, weights="random", model_args=args, meta=True)
    _demand(shapes.params < LARGEST, f"{shapes.params / 1e6:.0f} M parameters: not tiny")
    opened = opening.open(case.ref, weights="random", model_args=args)
    outcome.params = opened.params
    stir(opened.module)
    outcome.stage = "layers"
    layers = find.find_layers(opened.module, head=opened.head)
    outcome.layers = len(layers)
    if sum(layer.reason is None for layer in layers) < FEWEST:
        _describe(layers, outcome)
        outcome.status = "left out"
        outcome.why = f"linear layers that may be factorised: {outcome.factorised}"
        return
    outcome.stage = "run"
    given = None if case.inputs is None else case.inputs(opened.module.config)
    batch = noise(examples.example(opened) if given is None else given)
    dense = outputs(opened.module, batch)
    _demand(bool(dense[0].isfinite().all()), "the dense output is not finite")
    spent = None if given is not None else _count(opened, layers)
    if spent is None:
        outcome.notes.append("pela guesses no sample of it, so its FLOPs are unknown")
    layers = description.with_read_weights_dense(layers, spent)
    free = [layer for layer in layers if layer.reason is None]
    _describe(layers, outcome)
    outcome.stage = "full rank"
    found = full_rank(opened.module, batch, free, dense)
    if found > DENSE_ERROR:  # a model that picks its best boxes may pick others in the last digit
        double = copy.deepcopy(opened.module).double()
        found = full_rank(double, _double(batch), free, outputs(double, _double(batch)))
        outcome.notes.append("picks by score: full rank was compared in double precision")
    _demand(found < DENSE_ERROR, f"full rank is {found:.1e} from dense")
    outcome.stage = "half"
    factors, plan = cut(opened.module, free, policy="uniform", ratio=HALF, scope="layers")
    small, described = copy.copy(opened), description.describe(opened, layers, spent, plan)
    small.module = copy.deepcopy(opened.module)
    lowrank_replace.replace(small.module, factors)
    counted = sum(p.numel() for p in small.module.parameters())
    _demand(counted == described.params.after, f"{counted} parameters, not as reported")
    expected = outputs(small.module, batch)
    changed = max(_distance(a, b) for a, b in zip(expected, dense, strict=True))
    _demand(changed > 0, "the factors change nothing in the output")
    outcome.stage = "FLOPs"
    told = described.flops
    again = None if spent is None else _count(small, [])
    if spent is not None and again is not None and told is not None and again.total != told.after:
        if not _routes(opened, layers, spent, batch):
            _demand(False, f"{again.total} FLOPs, reported as {told.after} of {told.before}")
        outcome.notes.append("the FLOPs depend on the sample: tokens are routed by value")
    outcome.stage = "save and load"
    with tempfile.TemporaryDirectory() as folder:
        saving.save(small, described, Path(folder) / "a")
        back = loading.load(Path(folder) / "a")
    again_out = outputs(back.module, batch)
    same = all(torch.equal(a, b) for a, b in zip(again_out, expected, strict=True))
    _demand(same and len(again_out) == len(expected), "loaded, its outputs differ")
    _demand(back.manifest == described, "loaded, its manifest differs")
    _demand(back.opened.inputs == opened.inputs, "loaded, its inputs differ")
    outcome.stage = "distil"
    before, after = step(back.module, opened.module, batch)
    _demand(after < before, f"a step takes the loss from {before:.6g} to {after:.6g}")
    outcome.stage = ""


def cut(module: nn.Module, free: Sequence[Layer], **how: Any) -> tuple[Any, Plan]:
    """Factors of the layers by a policy, and its plan."""
    cuts = engine.solve(free, {}, keep=engine.Keep.ALL)
    fixed = find.fixed_params(module, free)
    plan = planner.plan(
        engine.spectra(free, cuts, {}), Budget(**how), ModelSize(fixed_params=fixed)
    )
    return engine.factors(free, cuts, {}, plan), plan


def full_rank(
    module: nn.Module, batch: Any, free: Sequence[Layer], dense: Sequence[Tensor]
) -> float:
    """How far the outputs are from dense when every layer is factorised at its full rank."""
    here = [replace(layer, module=module.get_submodule(layer.name)) for layer in free]
    pins: Any = {layer.name: "full" for layer in here}
    factors, _ = cut(module, here, policy="threshold", threshold=1.0, ratio=None, pins=pins)
    with lowrank_replace.replaced(module, factors):
        ours = outputs(module, batch)
    return max(_distance(a, b) for a, b in zip(ours, dense, strict=True))


def _double(batch: Any) -> Any:
    return tree_map(lambda t: t.double() if t.is_floating_point() else t, batch)


def _count(opened: OpenModel, layers: Sequence[Layer]) -> Cost:
    """As `record.cost`, which only warns where it can't."""
    sample = examples.example(opened)
    assert sample is not None  # timm and transformers have one
    return flops.count(opened.module, layers, lambda m: prediction.predict(m, sample))


def _routes(opened: OpenModel, layers: Sequence[Layer], spent: Cost, batch: Any) -> bool:
    """Whether the dense model itself takes another way for another sample."""
    other = flops.count(opened.module, layers, lambda m: prediction.predict(m, batch), 2)
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


def noise(batch: Any) -> Any:
    """Two samples of noise in the shape of one."""
    generator = torch.Generator().manual_seed(2)

    def fill(name: str, one: Tensor) -> Tensor:
        both = torch.cat([one, one])
        if both.is_floating_point():
            return torch.randn(both.shape, generator=generator)
        if name.endswith("input_ids"):  # special tokens stay where they are
            ids = torch.randint(5, 100, both.shape, generator=generator)
            return torch.where(both == 0, ids, both)
        return both

    if isinstance(batch, Tensor):
        return fill("", batch)
    return {name: fill(name, value) for name, value in batch.items()}


def outputs(module: nn.Module, batch: Any) -> list[Tensor]:
    """The main output, then all floating-point tensors that the module returns."""
    torch.manual_seed(0)
    with torch.no_grad():
        found = module(**batch) if isinstance(batch, dict) else module(batch)
    mask = batch.get("attention_mask") if isinstance(batch, dict) else None
    main, leaves = models_outputs.main_output(found, mask), tree_leaves(found)
    return [main, *(t for t in leaves if isinstance(t, Tensor) and t.is_floating_point())]


def step(student: nn.Module, teacher: nn.Module, batch: Any) -> tuple[float, float]:
    """The feature loss before and after a step down its gradient, in training mode, with the same
    dropout in both passes.

    The step is plain: Adam's first one moves what has next to no gradient as far as all else, and
    so may harm the taps that are right already.
    """
    teacher.eval().requires_grad_(False)
    names = taps.choose(student, None)
    student.train()

    with torch.no_grad(), models_outputs.caught(teacher, names) as theirs:
        _seeded(teacher, batch)

    def loss() -> Tensor:
        with models_outputs.caught(student, names) as ours:
            _seeded(student, batch)
        return losses.feature(
            [t for name in names for t in ours[name]], [t for name in names for t in theirs[name]]
        )

    before = loss()
    before.backward()  # type: ignore[no-untyped-call]
    gradients = [(p, p.grad) for p in student.parameters() if p.grad is not None]
    square = sum(float(g.square().sum()) for _, g in gradients)
    after = before.item()
    with torch.no_grad():
        for gain in GAINS:
            rate = gain * before.item() / square
            for parameter, gradient in gradients:
                parameter.sub_(gradient, alpha=rate)
            after = loss().item()
            if after < before.item():
                break
            for parameter, gradient in gradients:
                parameter.add_(gradient, alpha=rate)
    return before.item(), after


def _seeded(module: nn.Module, batch: Any) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    prediction.predict(module, batch)


def _distance(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        raise BrokenPromiseError(f"outputs of {tuple(a.shape)} and {tuple(b.shape)}")
    where = (a != b) & b.isfinite()  # what is masked is −∞ in both
    if not where.any():
        return 0.0
    largest = b[b.isfinite()].abs().max().clamp_min(1e-6)
    return float((a - b)[where].abs().max() / largest)


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BrokenPromiseError(otherwise)
