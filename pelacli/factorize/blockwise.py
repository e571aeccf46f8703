"""Calibration section by section: the activations of one block are in memory, and no others.

A forward sweep writes the states between the sections to disk. Then the last section says what the
output feels, and from back to front each block is run once more, watched, and passes the gradients
of its output on to its input. So each section's moments are those of a pass through the whole
model (`pelacli.factorize.calibration`), and as soon as they are complete they go to disk too.

What a section leaves on the shelf is enough to go on from there, so a run that was killed does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from pelacli.errors import RequestError
from pelacli.factorize import measured_damage
from pelacli.factorize.batches import samples_in
from pelacli.factorize.calibration import MomentSums, SummedMoments, check_finite, levels
from pelacli.factorize.engine import Solution
from pelacli.factorize.measured_damage import Damage
from pelacli.factorize.moments import Moments
from pelacli.factorize.observation import LayerSums
from pelacli.factorize.passes import Observer, Passes, draws_of, frozen, propagate
from pelacli.factorize.sections import Sections
from pelacli.factorize.sensitivity import Head
from pelacli.lowrank.calls import evaluating
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.replace import Parts
from pelacli.system.shelf import Shelf

SomeObserver = TypeVar("SomeObserver", bound=Observer)


class _StoredSums(Mapping[str, LayerSums]):
    """The sums on the shelf, each read when it is asked for."""

    def __init__(self, shelf: Shelf, names: Sequence[str]) -> None:
        self._shelf, self._names = shelf, names

    def __getitem__(self, name: str) -> LayerSums:
        return LayerSums(**self._shelf.get(_sums(name)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def collect(
    sections: Sections,
    batches: Sequence[Any],
    shelf: Shelf,
    passes: Passes | None = None,
    *,
    head: Head | None = None,
    advance: Callable[[int], None] = lambda samples: None,
) -> SummedMoments:
    """Moments of the sections' layers over the batches, as `calibration.collect` gives them.

    Args:
        shelf: of the states (which stay on it for the correction), gradients and moments. What it
            holds of an earlier call with the same arguments is not done again.
        head: of a language model, whose hidden states are what the sections give.
        advance: called after each batch in each section, with its number of samples.

    Raises:
        RequestError: no batches, or values that are not finite.
        PelaError: the disk is full.
    """
    passes = passes or Passes()
    if not batches:
        raise RequestError("calibration: there are no samples; give at least one batch")
    samples = sum(map(samples_in, batches))
    known: dict[str, float | None] = {}

    def keep(layers: Sequence[Layer], observer: MomentSums) -> dict[str, float | None]:
        _put_sums(layers, observer.sums, shelf)
        return levels(layers, observer.sums, samples * passes.draws)

    with frozen(sections.module), evaluating(sections.module):
        sections.prepare(batches)
        _forward(sections, batches, shelf)
        for found in _from_the_back(
            sections, batches, shelf, passes, head, advance, "section",
            lambda layers: MomentSums(layers, passes), keep,
        ):  # fmt: skip
            known |= found
    stored = _StoredSums(shelf, list(known))
    return SummedMoments(sections.all_layers, stored, known, samples, passes.draws)


def damage(
    sections: Sections,
    solutions: Mapping[str, Solution],
    moments: Mapping[str, Moments],
    batches: Sequence[Any],
    shelf: Shelf,
    *,
    seed: int,
    head: Head | None = None,
    advance: Callable[[int], None] = lambda samples: None,
) -> dict[str, Damage]:
    """What each layer's cut does over the first of the batches of `collect`, as
    `measured_damage.measure` finds it.

    Args:
        shelf: as `collect` has left it.
    """
    passes = measured_damage.passes_of(seed)
    found: dict[str, Damage] = {}

    def cuts(layers: Sequence[Layer]) -> measured_damage.Cuts:
        return measured_damage.Cuts([la for la in layers if la.name in moments], solutions, moments)

    def keep(layers: Sequence[Layer], observer: measured_damage.Cuts) -> dict[str, Any]:
        return {name: asdict(known) for name, known in observer.damage.items()}

    with frozen(sections.module), evaluating(sections.module):
        for kept in _from_the_back(
            sections, batches, shelf, passes, head, advance, "damage", cuts, keep
        ):
            found |= {name: Damage(**known) for name, known in kept.items()}
    return found


@torch.no_grad()
def in_sections(
    sections: Sections,
    shelf: Shelf,
    batches: Sequence[Any],
    factors: Mapping[str, Parts],
    watching: Callable[[int, Sequence[Layer]], AbstractContextManager[None]],
    advance: Callable[[], object] = lambda: None,
) -> Iterator[Tensor]:
    """What the model with these factors gives of each batch. States lie on the shelf meanwhile.

    Args:
        sections: prepared for no others than these batches.
        watching: (number of the batch, a section's layers) → the time in which they run on it.
        advance: is called when a batch has gone through a section.
    """
    sections.prepare(batches)
    last = len(sections) - 1
    with evaluating(sections.module):
        for section in range(last):
            with sections.at_work(section, factors):
                for number, batch in enumerate(batches):
                    given = shelf.get(_passing(number)) if section else None
                    with watching(number, sections.layers[section]):
                        output = sections.run(section, number, batch, given)
                    shelf.put(_passing(number), output)
                    advance()
    for number, batch in enumerate(batches):
        given = shelf.get(_passing(number))
        at_work = sections.at_work(last, factors)
        with evaluating(sections.module), at_work, watching(number, sections.layers[last]):
            output = sections.run(last, number, batch, given)
        shelf.drop(_passing(number))
        advance()
        yield output


def _passing(number: int) -> str:
    """On the shelf: the states of a batch on its way through the sections."""
    return f"passing-{number}"


def states(section: int, number: int) -> str:
    """On the shelf: what a section gets of a batch; section 0 gets the batch itself."""
    return f"states-{section}-{number}"


def _gradients(section: int, number: int, what: str) -> str:
    """On the shelf: those at what a section gets, one for each draw; of each thing that is found
    its own."""
    return f"gradients-{section}-{number}-{what}"


def _sums(layer: str) -> str:
    return f"sums-{layer}"


@torch.no_grad()
def _forward(sections: Sections, batches: Sequence[Any], shelf: Shelf) -> None:
    """Write the states of all batches before all sections."""
    for section in range(len(sections) - 1):
        left = [(n, b) for n, b in enumerate(batches) if states(section + 1, n) not in shelf]
        if not left:
            continue
        with sections.at_work(section):
            for number, batch in left:
                given = shelf.get(states(section, number)) if section else None
                shelf.put(states(section + 1, number), sections.run(section, number, batch, given))


def _from_the_back(
    sections: Sections,
    batches: Sequence[Any],
    shelf: Shelf,
    passes: Passes,
    head: Head | None,
    advance: Callable[[int], None],
    what: str,
    observer_of: Callable[[Sequence[Layer]], SomeObserver],
    keep: Callable[[Sequence[Layer], SomeObserver], Any],
) -> Iterator[Any]:
    """Let the batches go through one section after the other, from the last to the first.

    Args:
        what: is found; the name of what is on the shelf of it.
        observer_of: the layers of a section → who looks on at them.
        keep: (these layers, this observer) → what the shelf keeps of it.

    Yields:
        What was kept of each section, now or in an earlier call.
    """
    for section in reversed(range(len(sections))):
        done = f"{what}-{section}"
        if done in shelf:
            advance(sum(map(samples_in, batches)))
        else:
            layers = sections.layers[section]
            observer = observer_of(layers)
            with sections.at_work(section):
                _section(sections, section, batches, shelf, passes, head, advance, observer, what)
            shelf.put(done, keep(layers, observer))
        yield shelf.get(done)
        for number in range(len(batches)):
            shelf.drop(_gradients(section + 1, number, what))


def _section(
    sections: Sections,
    section: int,
    batches: Sequence[Any],
    shelf: Shelf,
    passes: Passes,
    head: Head | None,
    advance: Callable[[int], None],
    observer: Observer,
    what: str,
) -> None:
    """Let the batches go through one section, forward and back, under an observer's eyes. The
    gradients at its input go to the shelf."""
    for number, batch in enumerate(batches):
        seen = observer.watch(number, batch)
        given = shelf.get(states(section, number)) if section else None
        arriving: list[Tensor] = []
        if given is not None and passes.gradients:
            given.requires_grad_().register_hook(arriving.append)
        forward = partial(sections.run, section, number, batch, given)
        if section == len(sections) - 1:
            generator = draws_of(passes, number)
            propagate(sections.module, batch, forward, head, seen, passes, generator)
        else:
            with torch.set_grad_enabled(passes.gradients):
                with seen:
                    output = forward()
                behind = _gradients(section + 1, number, what)
                known = shelf.get(behind) if output.requires_grad else []
                for left, gradient in zip(reversed(range(len(known))), known, strict=True):
                    gradient = gradient.to(output.device)
                    torch.autograd.backward(output, gradient, retain_graph=left > 0)
        if given is not None:
            shelf.put(_gradients(section, number, what), arriving)
        observer.finish()
        advance(samples_in(batch))


def _put_sums(layers: Sequence[Layer], sums: Mapping[str, LayerSums], shelf: Shelf) -> None:
    """Write the sums of the layers that ran."""
    for layer in layers:
        known = sums[layer.name]
        if known.tokens:
            check_finite(layer.name, known.gram, known.gradient)
            shelf.put(_sums(layer.name), vars(known))
