"""Dense model → moments → spectra, and from a plan to the low-rank model.

The decompose step and the Python interface both go this way; they differ in where the model comes
from, who chooses the plan, and what becomes of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from pelacli import console
from pelacli.artefact import description
from pelacli.factorize import blockwise_refit, calibration, engine, refit, sensitivity
from pelacli.factorize.batches import cut, hold_back, join, samples_in, share, tokens_in
from pelacli.factorize.blockwise import collect
from pelacli.factorize.engine import Keep, Solution
from pelacli.factorize.moments import Moments
from pelacli.lowrank.replace import Factors, Parts, replace_empty
from pelacli.measure.held_back import Distance, HeldBack
from pelacli.models import filling, precision
from pelacli.models.blocks import blocks
from pelacli.models.inputs import TextInput
from pelacli.models.prediction import predict
from pelacli.models.token_head import TokenHead, token_head
from pelacli.ranks.plan import Plan
from pelacli.ranks.spectrum import Spectrum
from pelacli.steps.blockwise import Blockwise, Choice, blockwise
from pelacli.steps.dense import DenseModel
from pelacli.steps.lazy_factors import FactorsWhenRead, LazyFactors
from pelacli.system import memory, processes

# Tokens that a layer should see for each of its inputs.
_TOKENS_PER_INPUT = 4
# Where the widest layer sees fewer than this many, the correction is also tried with the larger
# ridge, which is better for few tokens and worse for many (docs/log/calibration-and-refit.md).
_PLENTY, _FIRMER = 16, 1.0

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
        corrects: whether layers are refitted to the inputs that the compressed model gives them.
        run: runs the model on a batch.
        blockwise: its blocks, where it is calibrated and corrected one after the other.
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
    corrects: bool
    show_progress: ShowProgress
    run: Run
    blockwise: Blockwise | None = None

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
        with self.show_progress("measuring on held-back samples", 0):
            return held_back.distance(factors)

    def _corrected_factors(self, plan: Plan, ridge: float) -> Mapping[str, Factors]:
        """The factors, refitted front to back to the inputs that the compressed model gives."""
        with self.show_progress("correcting", len(plan.ranks())) as bar:
            if self.blockwise is not None:
                return blockwise_refit.correct(
                    self.blockwise.sections,
                    plan.ranks(),
                    self.moments,
                    self.batches,
                    self.blockwise.shelf,
                    ridge=ridge,
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
                advance=bar.advance,
            )

    def _walk(self, module: nn.Module, batch: Any) -> Tensor:
        """A pass through all layers but those in a language model's head, whose logits would take
        more time and memory than they are worth here."""
        return _walk(self.run, self.head, module, batch)

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


def solve(
    dense: DenseModel,
    batches: Sequence[Any],
    keep: Keep,
    *,
    correct: bool,
    seed: int = 0,
    show_progress: ShowProgress = console.progress,
    run: Run = predict,
    choice: Choice | None = None,
) -> SolvedModel:
    """Calibrate a dense model and solve its layers.

    Args:
        batches: calibration samples, as `pelacli.models.prediction.predict` takes them; may be
            none. A part of them is held back. Processes that work together are all given the same,
            share them out, and come to the same factors.
        keep: what is kept of each solution for `SolvedModel.apply` and `SolvedModel.factors`, which
            solve a layer again where its vectors are missing.
        correct: refit each layer to the inputs that it really gets, where there are samples.
        seed: of the random signs that calibration propagates back.
        run: runs the model on a batch.
        choice: whether it goes block by block; unset: where memory is short.

    Raises:
        RequestError: less memory is free than calibration needs.
    """
    head = _head(dense, batches[0], run) if batches else None
    samples = hold_back(batches)
    fitted = join(samples.fitted) if head is None else cut(samples.fitted)
    count = sum(map(samples_in, fitted))
    tokens = [known for batch in fitted if (known := tokens_in(batch)) is not None]
    fitted = share(fitted)
    walk = partial(_walk, run, head)
    choice = choice or Choice()
    if processes.rank_and_size()[1] > 1:  # sections add nothing up over processes
        choice = replace(choice, wanted=False)
    parts = blockwise(dense, fitted, walk, seed, choice) if fitted else None
    if fitted:
        _check_memory(dense, fitted, head, parts, correct and keep is not Keep.NOTHING)
    moments = _moments(dense, fitted, head, seed, show_progress, run, parts) if fitted else {}
    if moments:
        _warn_of_few_tokens(dense, moments, count)
    with show_progress("reading spectra", len(dense.free)) as bar:
        solutions = engine.solve(dense.free, moments, keep=keep, advance=bar.advance)
    spectra = engine.spectra(dense.free, solutions, moments)
    return SolvedModel(
        dense=dense,
        batches=fitted,
        samples=count,
        sample_tokens=sum(tokens) if tokens else None,
        head=head,
        held_back=_held_back(dense, samples.held_back, head, run, parts)
        if samples.held_back
        else None,
        moments=moments,
        solutions=solutions,
        spectra=description.at_counted_tokens(spectra, dense.cost),
        corrects=correct and bool(fitted),
        show_progress=show_progress,
        run=run,
        blockwise=parts,
    )


def _check_memory(
    dense: DenseModel,
    batches: Sequence[Any],
    head: TokenHead | None,
    parts: Blockwise | None,
    correct: bool,
) -> None:
    """Say what calibration will need, and refuse it where it is more than there is: the system
    would end the process in the midst of it without a word."""
    sections = None if parts is None else parts.sections.layers
    estimate = dense.calibration_needs(
        batches, sections, correct=correct, language_model=head is not None
    )
    available = dense.free_memory
    if estimate is None or available is None:
        return
    estimate.check(available)
    # Of a lazily opened model what is in no block.
    model = sum(p.nbytes for p in dense.module.parameters() if not p.is_meta)
    console.info(
        f"needs about {memory.text(estimate.peak)} beside the model's {memory.text(model)}; "
        f"{memory.text(available)} are free"
    )


def _walk(run: Run, head: TokenHead | None, module: nn.Module, batch: Any) -> Tensor:
    """The model's output, or a language model's hidden states."""
    return run(module, batch) if head is None else head.hidden(batch)


@dataclass(frozen=True)
class _NamingHead:
    """A head whose model says which batch it fails on, as ``run`` does."""

    head: TokenHead
    module: nn.Module
    run: Run

    def hidden(self, inputs: Mapping[str, Tensor]) -> Tensor:
        try:
            return self.head.hidden(inputs)
        except Exception:  # a model raises whatever its code raises
            self.run(self.module, inputs)
            raise

    def logits(self, rows: Tensor) -> Tensor:
        return self.head.logits(rows)


def _head(dense: DenseModel, batch: Any, run: Run) -> TokenHead | None:
    """The head of a language model; None of any other."""
    module, weights = dense.module, dense.opened.weights
    with nullcontext() if weights is None else filling.in_turn(module, weights, blocks(module)):
        head = token_head(module, batch)
    return None if head is None else _NamingHead(head, module, run)


def _held_back(
    dense: DenseModel,
    batches: Sequence[Any],
    head: TokenHead | None,
    run: Run,
    parts: Blockwise | None,
) -> HeldBack:
    inputs = None if dense.opened is None else dense.opened.inputs
    causal = isinstance(inputs, TextInput) and bool(inputs.causal)
    samples = join(batches) if head is None else cut(batches)
    blockwise = None
    if parts is not None and dense.opened.weights is not None:
        blockwise = parts.sections.for_other_batches(), parts.shelf
    return HeldBack(dense.module, samples, run, head, causal=causal, blockwise=blockwise)


def _moments(
    dense: DenseModel,
    batches: Sequence[Any],
    head: TokenHead | None,
    seed: int,
    show_progress: ShowProgress,
    run: Run,
    parts: Blockwise | None,
) -> Mapping[str, Moments]:
    passes = calibration.Passes(seed=seed)
    times = 1 if parts is None else len(parts.sections)
    with show_progress("calibrating", times * sum(map(samples_in, batches))) as bar:
        if parts is None:
            moments: Mapping[str, Moments] = calibration.collect(
                dense.module, dense.free, batches, run, passes, head=head, advance=bar.advance
            )
        else:
            moments = collect(
                parts.sections, batches, parts.shelf, passes, head=head, advance=bar.advance
            )
    unseen = [layer.name for layer in dense.free if layer.name not in moments]
    if unseen:
        console.warn(
            f"{len(unseen)} layers never ran on the calibration samples and keep plain spectra: "
            f"{', '.join(unseen[:3])}"
        )
    return moments


def _warn_of_few_tokens(dense: DenseModel, moments: Mapping[str, Moments], samples: int) -> None:
    """Say where layers have hardly more tokens than inputs: a regression on so few says little."""
    seen = [
        (layer, round(moments[layer.name].tokens * samples))
        for layer in dense.free
        if layer.name in moments
    ]
    few = [(layer, tokens) for layer, tokens in seen if tokens < _TOKENS_PER_INPUT * layer.shape[1]]
    if few:
        layer, tokens = max(few, key=lambda pair: pair[0].shape[1])
        console.warn(
            f"{len(few)} layers see fewer than {_TOKENS_PER_INPUT} tokens for each of their inputs "
            f"({layer.name}: {tokens:,} tokens for {layer.shape[1]:,} inputs); calibrate on more"
        )
