"""Layers (and moments) → spectra → plan → factors: the calls that steps and API share."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.factorize import spectra as factorize_spectra
from pelacli.factorize.factors import Decomposition, absorb_mean, cut, decompose
from pelacli.factorize.moments import Moments
from pelacli.lowrank import find, replace
from pelacli.lowrank.layer import Layer
from pelacli.ranks.pins import pins_by_name as pins_by_name
from pelacli.ranks.plan import Plan
from pelacli.ranks.spectrum import Spectrum
from pelacli.system import malloc, threads
from pelacli.system.spill import SpillFile

# (down [r, in], up [out, r], bias [out] or None) of a layer
Factors = tuple[Tensor, Tensor, "Tensor | None"]


@dataclass
class Solved:
    """A layer's energies [n], and where its leading eigenvectors are put aside."""

    energies: Tensor
    name: str
    shelf: SpillFile


# What is known of a layer: its energies, and maybe more.
Cut = Tensor | Solved | Decomposition


def solve(
    layers: Sequence[Layer],
    moments: Mapping[str, Moments],
    *,
    full: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Solved]:
    """Solve every layer once, for a plan to be made and for any number of plans to be cut.

    What a cut needs beside the weights are eigenvectors, about a quarter of the weights' size.
    They go into a temporary file, so that memory holds the dense model and little else; without
    it every layer would have to be solved twice (docs/log.md), which is what happens where the
    file can't be written.

    Args:
        full: keep all eigenvectors; else those below break-even, since a plan uses no others
            (a pin may).
    """
    shelf = SpillFile()
    found: dict[str, Solved] = {}

    def work(layer: Layer) -> None:
        out, in_ = layer.shape
        keep = None if full else (out * in_ - 1) // (out + in_) + 1
        values, vectors = factorize_spectra.solve(layer.weight, moments.get(layer.name), keep=keep)
        shelf.put(layer.name, vectors)
        found[layer.name] = Solved(values, layer.name, shelf)

    _each(layers, work, moments, advance=advance)
    return {layer.name: found[layer.name] for layer in layers}


def energies(
    layers: Sequence[Layer],
    moments: Mapping[str, Moments],
    *,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """The energies of every layer [n], where a plan is all that is wanted.

    By the same solver as `solve`, though one without vectors takes half the time: it differs in
    the last digits, and so a dry run would now and then plan another rank than the run.
    """
    found: dict[str, Tensor] = {}

    def work(layer: Layer) -> None:
        found[layer.name] = factorize_spectra.solve(layer.weight, moments.get(layer.name), keep=0)[
            0
        ]

    _each(layers, work, moments, advance=advance)
    return {layer.name: found[layer.name] for layer in layers}


def decompositions(
    layers: Sequence[Layer],
    moments: Mapping[str, Moments],
    *,
    full: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Decomposition]:
    """Spectrum and basis of every layer, for those who try many plans: `factors` only cuts them.

    Only the components below break-even are kept, since a plan uses no others (a pin may:
    ``full`` keeps all): so the bases take no more memory than the weights.
    """
    found: dict[str, Decomposition] = {}

    def work(layer: Layer) -> None:
        out, in_ = layer.shape
        keep = None if full else (out * in_ - 1) // (out + in_) + 1
        weight = layer.weight
        found[layer.name] = decompose(
            weight, moments.get(layer.name), keep=keep, store=weight.dtype
        )

    _each(layers, work, moments, lean=False, advance=advance)
    return {layer.name: found[layer.name] for layer in layers}


def spectra(
    layers: Sequence[Layer],
    cuts: Mapping[str, Cut],
    moments: Mapping[str, Moments],
) -> list[Spectrum]:
    """What the rank engine sees. A calibrated layer's energies are damage per sample."""

    def found(layer: Layer) -> Tensor:
        one = cuts[layer.name]
        return one if isinstance(one, Tensor) else one.energies

    return [
        Spectrum(
            name=layer.name,
            shape=layer.shape,
            energies=found(layer).numpy(),
            tokens=moments[layer.name].tokens if layer.name in moments else 1.0,
        )
        for layer in layers
    ]


def factors(
    layers: Sequence[Layer],
    cuts: Mapping[str, Cut],
    moments: Mapping[str, Moments],
    plan: Plan,
    *,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Factors]:
    """(down, up, bias) of every layer that the plan factorises; the dense weights stay.

    Args:
        cuts: from `solve`. With energies alone, or none, each layer is solved again.
    """
    chosen = plan.ranks()
    planned = [layer for layer in layers if layer.name in chosen]
    found: dict[str, Factors] = {}

    def work(layer: Layer) -> None:
        rank, known = chosen[layer.name], cuts.get(layer.name)
        found[layer.name] = _factors(layer, rank, moments.get(layer.name), known)

    _each(planned, work, moments, lean=False, advance=advance)
    return {layer.name: found[layer.name] for layer in planned}


def apply(
    module: nn.Module,
    layers: Sequence[Layer],
    moments: Mapping[str, Moments],
    plan: Plan,
    *,
    cuts: Mapping[str, Cut] | None = None,
    ready: Mapping[str, Factors] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Factorise the module by the plan, in place, giving up each dense weight for its factors.

    Beyond the dense model this needs the memory of one or two layers. The given layers let go of
    what was replaced: their weights can't be read any more.

    Args:
        cuts: from `solve`. With energies alone, or none, each layer is solved again.
        ready: factors that are known already, as from correction.
    """
    chosen = plan.ranks()
    planned = [layer for layer in layers if layer.name in chosen]
    cuts, ready = cuts or {}, ready or {}
    replacing = threading.Lock()

    def work(layer: Layer) -> None:
        found = ready.get(layer.name)
        if found is None:
            rank, known = chosen[layer.name], cuts.get(layer.name)
            found = _factors(layer, rank, moments.get(layer.name), known)
        with replacing:
            replace.replace(module, {layer.name: found})
            layer.release()

    _each(planned, work, moments, advance=advance)


def _factors(layer: Layer, rank: int, moments: Moments | None, found: Cut | None) -> Factors:
    weight = layer.weight
    if isinstance(found, Decomposition):
        down, up = found.factors(rank)
    else:
        vectors = found.shelf.last_rows(found.name, rank) if isinstance(found, Solved) else None
        down, up = cut(weight, moments, rank, vectors=vectors, store=weight.dtype)
    mean = None if moments is None else moments.mean
    return down, up, absorb_mean(weight, layer.bias, down, up, mean)


def _each(
    layers: Sequence[Layer],
    work: Callable[[Layer], None],
    moments: Mapping[str, Moments],
    *,
    lean: bool = True,
    advance: Callable[[], None],
) -> None:
    """Layers side by side; where memory counts, within twice the largest layer's."""

    def cost(layer: Layer) -> int:
        return factorize_spectra.workspace(layer.shape, layer.name in moments)

    largest = max((la.params * la.weight.element_size() for la in layers), default=0)
    allowance = 2 * largest if lean else None
    with malloc.tight():
        threads.for_each(layers, work, cost=cost, allowance=allowance, done=advance)


def find_dense(
    module: nn.Module,
    ref: str,
    head: Collection[str],
    include: Sequence[str],
    exclude: Sequence[str],
    flag: str = "",
) -> list[Layer]:
    """All linear maps of a dense model, each with the reason why it stays dense, if any.

    Args:
        ref: what the user calls the model, for messages.
        head, include, exclude: see `lowrank.find_layers`.
        flag: what stands before "include" and "exclude" in messages ("--" on a command line).

    Raises:
        RequestError: the model is low-rank already, none of its layers may be factorised, or an
            expression matches nothing.
    """
    if find.low_rank_layers(module):
        raise RequestError(f"{ref}: is low-rank already; decompose the dense model")
    check_patterns(module, include, f"{flag}include")
    check_patterns(module, exclude, f"{flag}exclude")
    layers = find.find_layers(module, head=head, include=include, exclude=exclude)
    free_layers(layers, ref)
    return layers


def free_layers(layers: Sequence[Layer], ref: str) -> list[Layer]:
    """The layers that may be factorised.

    Raises:
        RequestError: there are none; the message calls the model ``ref``.
    """
    free = [layer for layer in layers if layer.reason is None]
    if not free:
        raise RequestError(f"{ref}: has no linear layer that may be factorised")
    return free


def check_patterns(module: nn.Module, patterns: Sequence[str], flag: str) -> None:
    """An expression that matches no module is a slip of the pen, not a wish.

    Raises:
        RequestError: naming the expression.
    """
    names = [name for name, _ in module.named_modules() if name]
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise RequestError(
                f"{flag} {pattern!r}: matches no module of the model; "
                f"names look like {names[len(names) // 2]}"
            )


def fixed_params(module: nn.Module, layers: Sequence[Layer]) -> int:
    """Parameters that no plan changes: everything but the weights of the given layers."""
    total = sum(p.numel() for p in module.parameters())
    return total - sum(layer.params for layer in layers)
