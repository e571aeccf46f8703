"""Layers (and moments) → solutions → spectra for the plan → factors in the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from pelacli.factorize.factors import absorb_mean, cut
from pelacli.factorize.moments import Moments
from pelacli.factorize.spectra import solve as solve_layer
from pelacli.factorize.spectra import workspace
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.replace import Factors, Parts, in_form, replace
from pelacli.ranks.forms import Form
from pelacli.ranks.plan import Plan
from pelacli.ranks.spectrum import Spectrum
from pelacli.system import malloc, threads
from pelacli.system.spill import SpillFile


class Keep(Enum):
    """Which eigenvectors of a solved layer are kept, so that factors need not solve it again.

    NOTHING: only the energies, where a plan is all that is wanted.
    PLANNED: those below break-even, since no plan of factors uses others.
    ALL: all of them, since a pinned rank or one of pivots may lie past break-even.
    """

    NOTHING = "nothing"
    PLANNED = "planned"
    ALL = "all"

    def count(self, shape: tuple[int, int]) -> int | None:
        """How many vectors of a layer (out, in) are kept; None: all."""
        out, in_ = shape
        below_break_even = (out * in_ - 1) // (out + in_) + 1
        return {Keep.NOTHING: 0, Keep.PLANNED: below_break_even, Keep.ALL: None}[self]


@dataclass(frozen=True)
class Solution:
    """What solving a layer gave.

    Attributes:
        energies: squared singular values in the layer's metric, non-increasing, [n], float64.
        layer: the layer's name, under which its eigenvectors are in the file.
        vectors: the file with the eigenvectors that were kept.
    """

    energies: Tensor
    layer: str
    vectors: SpillFile

    def leading_vectors(self, rank: int) -> Tensor | None:
        """The leading eigenvectors [rank, n] in rows, the leading one last; None where fewer were
        kept."""
        return self.vectors.last_rows(self.layer, rank)


def solve(
    layers: Sequence[Layer],
    moments: Mapping[str, Moments],
    *,
    keep: Keep = Keep.PLANNED,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Solution]:
    """Solve every layer once, for one plan to be made, or for many plans to be tried.

    What factors need beside the weights are eigenvectors, about a quarter of the weights' size.
    They go into a temporary file, so that memory holds the dense model and little else. Where the
    file can't be written, factors solve each layer again, which takes twice as long.

    Energies come from the same solver whatever is kept, though one without vectors takes half the
    time: it differs in the last digits, and so a dry run would now and then plan another rank.
    """
    vectors = SpillFile()
    solutions: dict[str, Solution] = {}

    def work(layer: Layer) -> None:
        energies, leading = solve_layer(
            layer.weight, moments.get(layer.name), keep=keep.count(layer.shape)
        )
        vectors.put(layer.name, leading)
        solutions[layer.name] = Solution(energies.cpu(), layer.name, vectors)

    _for_each(layers, work, moments, tight=True, advance=advance)
    return {layer.name: solutions[layer.name] for layer in layers}


def spectra(
    layers: Sequence[Layer], solutions: Mapping[str, Solution], moments: Mapping[str, Moments]
) -> list[Spectrum]:
    """What the rank engine sees. The energies of a calibrated layer are damage per sample."""
    return [
        Spectrum(
            name=layer.name,
            shape=layer.shape,
            energies=solutions[layer.name].energies.numpy(),
            tokens=moments[layer.name].tokens if layer.name in moments else 1.0,
        )
        for layer in layers
    ]


def factors(
    layers: Sequence[Layer],
    solutions: Mapping[str, Solution],
    moments: Mapping[str, Moments],
    plan: Plan,
    *,
    refitted: Mapping[str, Factors] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Parts]:
    """Every layer that the plan factorises, in its form; the model stays dense.

    Args:
        solutions: from `solve`. Where a layer's vectors are not there, it is solved again.
        refitted: factors that are known already, from `pelacli.factorize.refit`.
    """
    ranks, forms, known = plan.ranks(), plan.forms(), refitted or {}
    parts_of: dict[str, Parts] = {}
    planned = [layer for layer in layers if layer.name in ranks]

    def work(layer: Layer) -> None:
        name = layer.name
        if name in known:
            parts_of[name] = in_form(known[name], forms[name])
        else:
            parts_of[name] = _cut(layer, ranks[name], forms[name], moments, solutions)

    _for_each(planned, work, moments, tight=False, advance=advance)
    return {layer.name: parts_of[layer.name] for layer in planned}


def apply(
    module: nn.Module,
    layers: Sequence[Layer],
    moments: Mapping[str, Moments],
    plan: Plan,
    *,
    solutions: Mapping[str, Solution] | None = None,
    parts: Mapping[str, Parts] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Factorise the module by the plan, in place, giving up each dense weight for its factors.

    Beyond the dense model this needs the memory of one or two layers. The given layers let go of
    what was replaced: their weights can't be read any more.

    Args:
        solutions: from `solve`. Where a layer's vectors are not there, it is solved again.
        parts: layers that are known already, from `factors`.
    """
    ranks, forms = plan.ranks(), plan.forms()
    planned = [layer for layer in layers if layer.name in ranks]
    solutions, parts = solutions or {}, parts or {}
    replacing = threading.Lock()

    def work(layer: Layer) -> None:
        name = layer.name
        new = parts.get(name)
        if new is None:
            new = _cut(layer, ranks[name], forms[name], moments, solutions)
        with replacing:
            replace(module, {name: new})
            layer.release()

    _for_each(planned, work, moments, tight=True, advance=advance)


def _cut(
    layer: Layer,
    rank: int,
    form: Form,
    moments: Mapping[str, Moments],
    solutions: Mapping[str, Solution],
) -> Parts:
    """One layer cut, the mean of its error taken up by the bias."""
    weight, known = layer.weight, moments.get(layer.name)
    solution = solutions.get(layer.name)
    vectors = None if solution is None else solution.leading_vectors(rank)
    # Before they are balanced, factors of a weight in float16 may be past its largest number.
    store = torch.promote_types(weight.dtype, torch.float32)
    down, up = cut(weight, known, rank, vectors=vectors, store=store)
    if form == "factors":  # pivots are made of what is not rounded yet
        down, up = down.to(weight.dtype), up.to(weight.dtype)
    mean = None if known is None else known.mean
    return in_form((down, up, absorb_mean(weight, layer.bias, down, up, mean)), form)


def _for_each(
    layers: Sequence[Layer],
    work: Callable[[Layer], None],
    moments: Mapping[str, Moments],
    *,
    tight: bool,
    advance: Callable[[], None],
) -> None:
    """Do the work of the layers side by side.

    Args:
        tight: within twice the memory of the largest layer.
    """

    def cost(layer: Layer) -> int:
        on_disk = 0 if layer.read is None else layer.bytes
        return on_disk + workspace(layer.shape, layer.name in moments)

    largest = max((layer.bytes for layer in layers), default=0)
    allowance = 2 * largest if tight else None
    if layers and layers[0].device.type != "cpu":
        allowance = 0  # an accelerator works on one layer at a time
    with malloc.tight():
        threads.for_each(layers, work, cost=cost, allowance=allowance, done=advance)
