"""Correction section by section: both streams of states lie on disk between the sections.

Within a section it is `pelacli.factorize.refit`, or `pelacli.factorize.waves` where the samples are
more than shall be in memory together. The dense stream is what calibration has left; the
compressed one is written as the sections are done, so that with a section's factors there always
stands what a killed run needs to go on behind them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from pelacli.factorize import refit
from pelacli.factorize.blockwise import states
from pelacli.factorize.moments import Moments
from pelacli.factorize.sections import Sections
from pelacli.factorize.waves import DifferentWaysError, Wave
from pelacli.factorize.waves import correct as correct_in_waves
from pelacli.lowrank.calls import evaluating
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.padding import padding_mask
from pelacli.lowrank.replace import Factors
from pelacli.system.shelf import Shelf


def correct(
    sections: Sections,
    ranks: Mapping[str, int],
    moments: Mapping[str, Moments],
    batches: Sequence[Any],
    shelf: Shelf,
    *,
    ridge: float = refit.RIDGE,
    payback: float = refit.PAYBACK,
    at_once: int | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Mapping[str, Factors]:
    """Factors of the planned layers, as `refit.correct` gives them; each is read when asked for.

    Args:
        ranks, moments, ridge, payback, advance: as there.
        at_once: how many batches are in a section at a time; unset: all.
        batches, shelf: those of `blockwise.collect`. What the shelf holds of an earlier call with
            the same arguments is not done again.

    Raises:
        PelaError: the disk is full.
    """
    request = json.dumps([dict(ranks), ridge, payback], sort_keys=True)
    plan = hashlib.sha256(request.encode()).hexdigest()[:12]
    settings: dict[str, Any] = {"ridge": ridge, "payback": payback}
    at_once = min(at_once or len(batches), len(batches))
    lies_in: dict[str, str] = {}
    with evaluating(sections.module):
        sections.prepare(batches)
        for section in range(len(sections)):
            layers = [layer for layer in sections.layers[section] if layer.name in ranks]
            done = f"{plan}-factors-{section}"
            if done in shelf:
                factors = shelf.get(done)
            else:
                step = _Section(sections, section, layers, batches, shelf, plan)
                with sections.at_work(section):
                    factors = step.factors(ranks, moments, at_once, settings)
                shelf.put(done, {name: list(known) for name, known in factors.items()})
            lies_in |= dict.fromkeys(factors, done)  # a layer that never ran has none
            for _ in layers:
                advance()
            for number in range(len(batches)):
                shelf.drop(_compressed(plan, section, number))
    return _StoredFactors(shelf, lies_in)


class _StoredFactors(Mapping[str, Factors]):
    """The factors on the shelf. Those of the section that was asked for last are in memory."""

    def __init__(self, shelf: Shelf, lies_in: Mapping[str, str]) -> None:
        self._shelf, self._lies_in = shelf, lies_in
        self._last, self._read = "", dict[str, Any]()

    def __getitem__(self, name: str) -> Factors:
        key = self._lies_in[name]
        if key != self._last:
            self._read = {}
            self._last, self._read = key, self._shelf.get(key)
        down, up, bias = self._read[name]
        return down, up, bias

    def __contains__(self, name: object) -> bool:
        return name in self._lies_in  # nothing is read for that

    def __iter__(self) -> Iterator[str]:
        return iter(self._lies_in)

    def __len__(self) -> int:
        return len(self._lies_in)


def _compressed(plan: str, section: int, number: int) -> str:
    """On the shelf: what a section gets of a batch in the compressed stream."""
    return f"{plan}-{states(section, number)}"


@dataclass
class _Passage:
    """A batch on its way through one section.

    Attributes:
        states: that it brings; None into the first section.
        output: that it has when it comes out.
    """

    number: int
    batch: Any
    states: Tensor | None
    output: Tensor | None = None


@dataclass
class _Section:
    """The correction of one section."""

    sections: Sections
    section: int
    layers: Sequence[Layer]
    batches: Sequence[Any]
    shelf: Shelf
    plan: str

    def factors(
        self,
        ranks: Mapping[str, int],
        moments: Mapping[str, Moments],
        at_once: int,
        settings: Mapping[str, Any],
    ) -> dict[str, Factors]:
        """Of the section's layers; the compressed states behind it go to the shelf."""
        known = (self.sections.module, self.layers, ranks, moments)
        if at_once < len(self.batches):
            with suppress(DifferentWaysError):
                waves = partial(self._waves, at_once)
                return correct_in_waves(*known, waves, self._walk, **settings)
        (factors,) = [
            refit.correct(
                *known,
                wave.dense,
                self._walk,
                compressed=wave.compressed,
                masks=wave.masks,
                **settings,
            )
            for wave in self._waves(len(self.batches))
        ]
        return factors

    def _walk(self, module: nn.Module, passage: _Passage) -> None:
        at = (passage.number, passage.batch, passage.states)
        passage.output = self.sections.run(self.section, *at)

    def _waves(self, size: int) -> Iterator[Wave]:
        """So many batches at a time. What comes out of the section goes to the shelf."""
        section, shelf = self.section, self.shelf
        for start in range(0, len(self.batches), size):
            numbers = range(start, min(start + size, len(self.batches)))
            dense, compressed = [], []
            for number in numbers:
                names = (states(section, number), _compressed(self.plan, section, number))
                ours, theirs = (shelf.get(name) if section else None for name in names)
                dense.append(_Passage(number, self.batches[number], ours))
                compressed.append(_Passage(number, self.batches[number], theirs))
            masks = [padding_mask(self.batches[number]) for number in numbers]
            yield Wave(numbers, dense, compressed, masks)
            for passage in compressed:
                if passage.output is not None and section < len(self.sections) - 1:
                    shelf.put(_compressed(self.plan, section + 1, passage.number), passage.output)
