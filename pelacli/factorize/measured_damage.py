"""How much the model's output really feels a layer's cut, beside what its energies say.

Energies take the errors of a sample's tokens for independent: the damage is the sum over tokens of
the squares of gᵀ(W − W′)x. In truth it is the square of their sum. Where tokens err alike and the
output is a mean of them, as behind the last layers of a sentence encoder, that is ten times as
much; elsewhere half. So each layer is cut once, to half of its parameters, and what it would do to
the output is measured to first order, sample by sample, in one pass forward and back that leaves
the model dense. The layer's energies are multiplied by the ratio, its scale, so that layers can be
compared. Measured in docs/log/ranks.md. LEMS (ICML 2026) scales energies by measured divergences
too, with a pass through the whole model for each layer.

Few samples give ratios that differ by chance. So the scales are drawn towards each other by the
share of their spread that chance explains (James and Stein 1961).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.factorize.batches import samples_in
from pelacli.factorize.engine import Solution
from pelacli.factorize.factors import components
from pelacli.factorize.moments import Moments, narrow_in
from pelacli.factorize.passes import Passes, observe, observed
from pelacli.factorize.sensitivity import Head
from pelacli.factorize.spectra import near_root, precision, solve
from pelacli.lowrank.calls import LinearCalls
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.padding import padding_mask
from pelacli.ranks.spectrum import Spectrum
from pelacli.system import processes

# Of the calibration samples a quarter, but 16 at least and 64 at most.
_SHARE, _LEAST, _MOST = 4, 16, 64
# Energies left out that are a smaller share of all are rounding, and no ratio is taken of them.
_NOTHING = 1e-9
# Other draws than those that the moments were made of, which would agree with them by chance.
_OTHER_DRAWS = 0x5CA1E


@dataclass
class Damage:
    """What a layer's cut does to the output, summed over samples; each one's damage is d.

    Attributes:
        count: samples.
        total, squares: Σ d and Σ d².
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, damage: Tensor) -> None:
        """Add the samples' [n], float64."""
        self.count += len(damage)
        self.total += float(damage.sum())
        self.squares += float(damage.square().sum())

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def variance_of_log(self) -> float:
        """Of the mean's logarithm, by chance.

        Squares of normal numbers, as the damage would be if errors were, have twice the square of
        their mean as variance. Few samples show less than there is, so it is taken as no smaller.
        """
        spread = max(self.squares / self.count - self.mean**2, 2 * self.mean**2)
        return spread / (self.count - 1) / self.mean**2


def passes_of(seed: int) -> Passes:
    """How the samples go through the model."""
    return Passes(seed=seed ^ _OTHER_DRAWS, draws=1)


def first(batches: Sequence[Any], samples: int) -> Sequence[Any]:
    """This process's share of the batches that the damage is measured on.

    Args:
        batches: this process's share of all.
        samples: of all processes.
    """
    if not batches:
        return []
    wanted = min(_MOST, max(_LEAST, samples // _SHARE))
    rank, size = processes.rank_and_size()
    many = math.ceil(wanted / samples_in(batches[0]))
    return batches[: len(range(rank, many, size))]


def measure(
    module: nn.Module,
    layers: Sequence[Layer],
    solutions: Mapping[str, Solution],
    moments: Mapping[str, Moments],
    batches: Sequence[Any],
    predict: Callable[[nn.Module, Any], Tensor],
    *,
    seed: int,
    head: Head | None = None,
    advance: Callable[[int], None] = lambda samples: None,
) -> dict[str, Damage]:
    """What each layer's cut does, over the batches and those of the other processes.

    Args:
        layers: only those with moments are measured.
        batches: of `first`.
        seed: of the calibration.
        predict, head, advance: as for `pelacli.factorize.calibration.collect`.
    """
    cuts = Cuts([la for la in layers if la.name in moments], solutions, moments)
    observe(module, batches, predict, passes_of(seed), cuts, head=head, advance=advance)
    return added_up(processes.all_gather(cuts.damage))


def added_up(shares: Sequence[Mapping[str, Damage]]) -> dict[str, Damage]:
    """The damage over the samples of several processes."""
    found: dict[str, Damage] = {}
    for share in shares:
        for name, known in share.items():
            whole = found.setdefault(name, Damage())
            whole.count += known.count
            whole.total += known.total
            whole.squares += known.squares
    return found


def scaled(spectra: Sequence[Spectrum], scales: Mapping[str, float]) -> list[Spectrum]:
    """The spectra with energies that are multiplied by their layers' scales."""
    return [replace(s, energies=s.energies * scales.get(s.name, 1.0)) for s in spectra]


def scales(spectra: Sequence[Spectrum], damage: Mapping[str, Damage]) -> dict[str, float]:
    """Layer → its measured damage over that of its energies; layers of which that isn't known get
    the mean one. Empty where none is known."""
    logs: dict[str, float] = {}
    chance = 0.0
    for spectrum in spectra:
        measured = damage.get(spectrum.name, Damage())
        left_out = float(spectrum.energies[reference_rank(spectrum.shape) :].sum())
        if measured.count < 2 or left_out <= _NOTHING * spectrum.energy:
            continue
        if 0 < measured.total < math.inf and measured.squares < math.inf:
            logs[spectrum.name] = math.log(measured.mean / left_out)
            chance += measured.variance_of_log
    if not logs:
        return {}
    middle = math.fsum(logs.values()) / len(logs)
    spread = math.fsum((log - middle) ** 2 for log in logs.values())
    kept = max(0.0, 1 - chance / spread) if spread else 0.0
    return {s.name: math.exp(middle + kept * (logs.get(s.name, middle) - middle)) for s in spectra}


def reference_rank(shape: tuple[int, int]) -> int:
    """The rank of the cut that is measured: half of the layer's parameters."""
    out, in_ = shape
    return max(1, out * in_ // (2 * (out + in_)))


class Cuts:
    """The observer of what cuts would do.

    Attributes:
        damage: layer → what is known of it so far.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        solutions: Mapping[str, Solution],
        moments: Mapping[str, Moments],
    ) -> None:
        self._layers, self._solutions, self._moments = layers, solutions, moments
        self._cuts: dict[str, _Cut] = {}
        self._errors: dict[str, Tensor] = {}  # layer → of the batch's samples, Σ g·(y − y′)
        self.damage = {layer.name: Damage() for layer in layers}

    def watch(self, number: int, batch: Any) -> LinearCalls:
        """See `pelacli.factorize.passes.Observer`."""
        self._errors = {}
        mask = padding_mask(batch)
        samples = samples_in(batch)

        def call_of(layer: Layer, weight: Tensor) -> _Call:
            if layer.name not in self._cuts:
                self._cuts[layer.name] = self._cut(layer, weight)
            return _Call(self._cuts[layer.name], layer.name, mask, samples, self._errors)

        return observed(self._layers, call_of, True)

    def finish(self) -> None:
        """See `pelacli.factorize.passes.Observer`."""
        for name, errors in self._errors.items():
            self.damage[name].add(errors.square())

    @torch.no_grad()
    def _cut(self, layer: Layer, weight: Tensor) -> _Cut:
        known = self._moments[layer.name].to(weight.device)
        rank = reference_rank(layer.shape)
        vectors = self._solutions[layer.name].leading_vectors(rank)
        if vectors is None:
            vectors = solve(weight, known, keep=rank)[1]
        dtype = precision(known)
        vectors = vectors.to(weight.device, dtype)
        rows, inner = components(vectors, near_root(weight, known, dtype))
        inwards = narrow_in(layer.shape)
        shift = known.mean
        if shift is not None and not inwards:
            shift = weight.to(dtype) @ shift.to(dtype)
        if not inwards:
            rows, inner = inner.T, rows.T
        return _Cut(rows.float(), inner.float(), None if shift is None else shift.float(), inwards)


@dataclass
class _Cut:
    """A layer's cut on its narrower side, of the vectors v = x, or W x where in ≥ out.

    Attributes:
        down, up: what is kept of v is v downᵀ upᵀ: [r, n], [n, r].
        mean: of v, which the bias takes up; None of a layer without one.
    """

    down: Tensor
    up: Tensor
    mean: Tensor | None
    narrow_in: bool

    def error(self, v: Tensor) -> Tensor:
        """What is lost of v, [..., n]."""
        v = v if self.mean is None else v - self.mean
        return v - v @ self.down.T @ self.up.T


@dataclass
class _Call:
    """One call of a layer, in which its cut is imagined."""

    cut: _Cut
    layer: str
    mask: Tensor | None  # [B, N]; padding counts for nothing
    samples: int
    errors: dict[str, Tensor]  # layer → [B], or [1] where samples can't be told apart
    lost: Tensor = field(init=False)

    def forward(self, x: Tensor, y: Tensor) -> None:
        """x: [..., in], y: [..., out] without bias."""
        self.lost = self.cut.error((x if self.cut.narrow_in else y).detach().float())

    def backward(self, g: Tensor, gx: Tensor) -> None:
        """g: [..., out] gradient at the output, gx: [..., in] = g W."""
        felt = ((gx if self.cut.narrow_in else g).detach().float() * self.lost).sum(-1)
        if self.mask is not None and felt.shape == self.mask.shape:
            felt = felt * self.mask.to(felt)
        # Windows of an image follow each other, and so do a text's tokens in one long row. The
        # samples of what is routed to experts are not known: all are one, whose signs are as free.
        told = felt.ndim and len(felt) % self.samples == 0
        felt = felt.reshape(self.samples if told else 1, -1).double().sum(1)
        before = self.errors.get(self.layer)
        if before is None:
            self.errors[self.layer] = felt
        elif len(before) == len(felt):
            self.errors[self.layer] = before + felt
        else:
            self.errors[self.layer] = (before.sum() + felt.sum()).reshape(1)
