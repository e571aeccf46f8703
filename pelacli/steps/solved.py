"""A dense model whose layers are solved: from a plan to factors, and to the low-rank model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pelacli import console
from pelacli.factorize import blockwise_refit, engine, refit, sensitivity
from pelacli.factorize.engine import Solution
from pelacli.factorize.moments import Moments
from pelacli.lowrank.replace import Factors, Parts, replace_empty
from pelacli.measure.held_back import Distance, HeldBack
from pelacli.models import precision
from pelacli.models.blocks import blocks
from pelacli.models.token_head import TokenHead
from pelacli.ranks.plan import Plan
from pelacli.ranks.spectrum import Spectrum
from pelacli.steps.blockwise import Blockwise
from pelacli.steps.dense import DenseModel
from pelacli.steps.lazy_factors import FactorsWhenRead, LazyFactors
from pelacli.system import malloc

# Where the widest layer sees fewer than this many, the correction is also tried with the larger
# ridge, which is better for few tokens and worse for many (docs/log/calibration-and-refit.md).
_PLENTY, _FIRMER = 16, 1.0

_PARTS = 10  # that the time of a correction is told by, in a model without blocks

# (what is being done, how many parts it has) → the block in which it is done
ShowProgress = Callable[[str, float], AbstractContextManager[console.Progress]]
# (the model, a batch) → its main output [B, …]
Run = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Fit:
    """Factors of all planned layers, and how far the model with them is from the dense one.

    Attributes:
        corrected: whether they were refitted front to back.
        distance: on the held-back samples; None where there are none.
        one_shot: the distance before the correction, where that was kept.
        rejected: the distance after a correction that was not.
        ridge: of the correction; see `pelacli.factorize.refit.correct`.
    """

    factors: Mapping[str, Parts]
    corrected: bool
    distance: Distance | None = None
    one_shot: Distance | None = None
    rejected: Distance | None = None
    ridge: float | None = None

    @property
    def layer_errors(self) -> Mapping[str, float]:
        """Layer → its relative error on the held-back samples; empty where there are none."""
        return {} if self.distance is None else self.distance.layers

    def document(self) -> dict[str, Any]:
        """What JSON says of it."""
        distances = {"one_shot": self.one_shot, "rejected": self.rejected}
        document = {"corrected": self.corrected, "ridge": self.ridge}
        if self.distance is None:
            return {**document, "held_back": None}
        others = {key: known.document() for key, known in distances.items() if known is not None}
        return {**document, "held_back": {**self.distance.document(), **others}}


@dataclass(frozen=True)
class SolvedModel:
    """A dense model whose layers are solved: plans can be made of its spectra and applied to it.

    Attributes:
        batches: calibration samples, this process's share of them; none where the spectra come from
            the weights alone.
        samples: how many samples the spectra are calibrated on, over all processes.
        sample_tokens: how many tokens of text these have, without padding; None without text.
        held_back: samples that nothing is fitted to; None where there are too few.
        head: of a language model that is calibrated; else None.
        moments: layer → its moments over the samples.
        solutions: layer → what solving it gave.
        spectra: of the layers that may be factorised.
        scales: layer → what its energies were multiplied by; see
            `pelacli.factorize.measured_damage`.
        corrects: whether layers are refitted to the inputs that the compressed model gives them.
        run: runs the model on a batch.
        blockwise: its blocks, where it is calibrated and corrected one after the other.
        counts: whether the batches add to the sums: see `pelacli.factorize.batches.Share`.
    """

    dense: DenseModel
    batches: Sequence[Any]
    samples: int
    sample_tokens: int | None
    held_back: HeldBack | None
    head: TokenHead | None
    moments: Mapping[str, Moments]
    solutions: Mapping[str, Solution]
    spectra: Sequence[Spectrum]
    scales: Mapping[str, float]
    corrects: bool
    show_progress: ShowProgress
    run: Run
    blockwise: Blockwise | None = None
    counts: bool = True

    @property
    def sensitivity(self) -> str:
        """What the energies were measured by; see `pelacli.factorize.sensitivity`."""
        if not self.batches:
            return sensitivity.WEIGHTS
        return sensitivity.PROJECTIONS if self.head is None else sensitivity.SAMPLED_TOKENS

    def fit(self, plan: Plan) -> Fit:
        """Factors of every layer that the plan factorises; the model stays dense.

        The corrected ones, unless held-back samples are nearer to the dense model with those of one
        shot: a correction is a regression, and few samples can lead it astray. Where they are few,
        a firmer ridge is tried too.
        """
        if self.held_back is None:
            if not self.corrects:
                return Fit(self._factors(plan, {}), False)
            ridge = self._ridges(plan)[-1]
            return Fit(self._corrected(plan, ridge), True, ridge=ridge)
        before = self._distance(self.held_back, factors := self._factors(plan, {}))
        if not self.corrects:
            return Fit(factors, False, before)
        del factors  # they are not held beside the corrected ones, but made again where needed
        best: Fit | None = None
        for ridge in self._ridges(plan):
            factors = self._corrected(plan, ridge)
            after = self._distance(self.held_back, factors)
            if best is None or best.distance is None or after.closer_than(best.distance):
                best = Fit(factors, True, after, one_shot=before, ridge=ridge)
        assert best is not None
        assert best.distance is not None
        if best.distance.closer_than(before):
            return best
        rejected = best.distance
        del best, factors
        return Fit(self._factors(plan, {}), False, before, rejected=rejected)

    def one_shot(self, plan: Plan) -> Distance:
        """How far the plan's layers of one shot are from the dense model, on the held-back samples,
        of which there must be some."""
        assert self.held_back is not None
        return self._distance(self.held_back, self._factors(plan, {}))

    def _ridges(self, plan: Plan) -> list[float]:
        """The ridges that the correction is tried with."""
        ranks = plan.ranks()
        planned = [la for la in self.dense.free if la.name in ranks and la.name in self.moments]
        if not planned:
            return [refit.RIDGE]
        widest = max(planned, key=lambda layer: layer.shape[1])
        tokens = self.moments[widest.name].tokens * self.samples
        few = tokens < _PLENTY * widest.shape[1]
        return [refit.RIDGE, _FIRMER] if few else [refit.RIDGE]

    def _corrected(self, plan: Plan, ridge: float) -> Mapping[str, Parts]:
        return self._factors(plan, self._corrected_factors(plan, ridge))

    def _factors(self, plan: Plan, corrected: Mapping[str, Factors]) -> Mapping[str, Parts]:
        """Those of one shot, but for the layers that are corrected already."""
        dense, solutions, moments = self.dense, self.solutions, self.moments
        if dense.opened.weights is not None:
            return LazyFactors(dense.opened, dense.free, solutions, moments, plan, corrected)
        factors = engine.factors(dense.free, solutions, moments, plan, refitted=corrected)
        return precision.rounded(dense.opened, factors)

    def _distance(self, held_back: HeldBack, factors: Mapping[str, Parts]) -> Distance:
        with self.show_progress("measuring on held-back samples", held_back.passes()) as bar:
            return held_back.distance(factors, bar.advance)

    def _corrected_factors(self, plan: Plan, ridge: float) -> Mapping[str, Factors]:
        """The factors, refitted front to back to the inputs that the compressed model gives."""
        # The streams are made of many tensors that come and go: between them glibc leaves holes.
        planned = len(plan.ranks())
        # Whoever watches would wonder why it begins again.
        what = "correcting" if ridge == refit.RIDGE else "correcting again, with a firmer ridge"
        with malloc.tight(), self.show_progress(what, planned) as bar:
            # Layers of a block take unlike times, blocks about the same.
            bar.announce(calls=math.ceil(planned / (len(blocks(self.dense.module)) or _PARTS)))
            if self.blockwise is not None:
                sections = self.blockwise.sections
                needs = self.dense.calibration_needs(
                    self.batches, sections.layers, correct=True, language_model=False
                )
                return blockwise_refit.correct(
                    sections,
                    plan.ranks(),
                    self.moments,
                    self.batches,
                    self.blockwise.shelf,
                    ridge=ridge,
                    at_once=None if needs is None else needs.at_once,
                    advance=bar.advance,
                )
            return refit.correct(
                self.dense.module,
                self.dense.free,
                plan.ranks(),
                self.moments,
                self.batches,
                self._walk,
                ridge=ridge,
                counts=self.counts,
                advance=bar.advance,
            )

    def _walk(self, module: nn.Module, batch: Any) -> Tensor:
        """A pass through all layers but those in a language model's head, whose logits would take
        more time and memory than they are worth here."""
        return states_of(self.run, self.head, module, batch)

    def apply(self, plan: Plan, fit: Fit | None) -> None:
        """Factorise the module by the plan, in place.

        Args:
            fit: the layers; None makes them of the solutions, each when its turn comes. A lazily
                opened model gets them when it is saved; nothing of it may be filled now.
        """
        opened = self.dense.opened
        if opened.weights is not None:
            factors = self._factors(plan, {}) if fit is None else fit.factors
            opened.weights = FactorsWhenRead(opened.weights, self.dense.free, factors)
            replace_empty(self.dense.module, plan.ranks(), plan.forms())
            return
        with self.show_progress("factorising", len(plan.ranks())) as bar:
            engine.apply(
                self.dense.module,
                self.dense.free,
                self.moments,
                plan,
                solutions=self.solutions,
                parts={} if fit is None else fit.factors,
                advance=bar.advance,
            )


def states_of(run: Run, head: TokenHead | None, module: nn.Module, batch: Any) -> Tensor:
    """The model's output, or a language model's hidden states."""
    return run(module, batch) if head is None else head.hidden(batch)
