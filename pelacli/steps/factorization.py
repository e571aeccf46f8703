"""Dense model → moments → spectra, and from a plan to the low-rank model.

The decompose step and the Python interface both go this way; they differ in where the model comes
from, who chooses the plan, and what becomes of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pelacli import console
from pelacli.artefact import description
from pelacli.factorize import calibration, engine, refit
from pelacli.factorize.batches import samples_in, tokens_in
from pelacli.factorize.engine import Keep, Solution
from pelacli.factorize.moments import Moments
from pelacli.lowrank.replace import Factors
from pelacli.models.prediction import predict
from pelacli.ranks.plan import Plan
from pelacli.ranks.spectrum import Spectrum
from pelacli.steps.dense import DenseModel

# (what is being done, how many parts it has) → the block in which it is done
ShowProgress = Callable[[str, float], AbstractContextManager[console.Progress]]
# (the model, a batch) → its main output [B, …]
Run = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class SolvedModel:
    """A dense model whose layers are solved: plans can be made of its spectra and applied to it.

    Attributes:
        batches: calibration samples; none where the spectra come from the weights alone.
        moments: layer → its moments over the samples.
        solutions: layer → what solving it gave.
        spectra: of the layers that may be factorised.
        corrects: whether layers are refitted to the inputs that the compressed model gives them.
        run: runs the model on a batch.
    """

    dense: DenseModel
    batches: Sequence[Any]
    moments: Mapping[str, Moments]
    solutions: Mapping[str, Solution]
    spectra: Sequence[Spectrum]
    corrects: bool
    show_progress: ShowProgress
    run: Run

    @property
    def samples(self) -> int:
        """How many samples the spectra are calibrated on."""
        return sum(map(samples_in, self.batches))

    @property
    def sample_tokens(self) -> int | None:
        """How many tokens of text these samples have, without padding; None without text."""
        counts = [count for batch in self.batches if (count := tokens_in(batch)) is not None]
        return sum(counts) if counts else None

    def factors(self, plan: Plan) -> dict[str, Factors]:
        """Factors of every layer that the plan factorises; the model stays dense."""
        return engine.factors(
            self.dense.free,
            self.solutions,
            self.moments,
            plan,
            refitted=self.corrected_factors(plan),
        )

    def corrected_factors(self, plan: Plan) -> dict[str, Factors]:
        """The factors, refitted front to back to the inputs that the compressed model really gives;
        none where the model isn't to be corrected."""
        if not self.corrects:
            return {}
        with self.show_progress("correcting", len(plan.ranks())) as bar:
            return refit.correct(
                self.dense.module,
                self.dense.free,
                plan.ranks(),
                self.moments,
                self.batches,
                self.run,
                advance=bar.advance,
            )

    def apply(self, plan: Plan, factors: Mapping[str, Factors]) -> None:
        """Factorise the module by the plan, in place.

        Args:
            factors: those that are known already; the others are made of the solutions.
        """
        with self.show_progress("factorising", len(plan.ranks())) as bar:
            engine.apply(
                self.dense.module,
                self.dense.free,
                self.moments,
                plan,
                solutions=self.solutions,
                refitted=factors,
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
) -> SolvedModel:
    """Calibrate a dense model and solve its layers.

    Args:
        batches: calibration samples as `pelacli.factorize.batches.join` gives them; may be empty.
        keep: what is kept of each solution for `SolvedModel.apply` and `SolvedModel.factors`, which
            solve a layer again where its vectors are missing.
        correct: refit each layer to the inputs that it really gets, where there are samples.
        seed: of the random signs that calibration propagates back.
        run: runs the model on a batch.
    """
    moments = _moments(dense, batches, seed, show_progress, run) if batches else {}
    with show_progress("reading spectra", len(dense.free)) as bar:
        solutions = engine.solve(dense.free, moments, keep=keep, advance=bar.advance)
    spectra = engine.spectra(dense.free, solutions, moments)
    return SolvedModel(
        dense=dense,
        batches=batches,
        moments=moments,
        solutions=solutions,
        spectra=description.at_counted_tokens(spectra, dense.cost),
        corrects=correct and bool(batches),
        show_progress=show_progress,
        run=run,
    )


def _moments(
    dense: DenseModel, batches: Sequence[Any], seed: int, show_progress: ShowProgress, run: Run
) -> dict[str, Moments]:
    with show_progress("calibrating", sum(map(samples_in, batches))) as bar:
        moments = calibration.collect(
            dense.module,
            dense.free,
            batches,
            run,
            calibration.Passes(seed=seed),
            advance=bar.advance,
        )
    unseen = [layer.name for layer in dense.free if layer.name not in moments]
    if unseen:
        console.warn(
            f"{len(unseen)} layers never ran on the calibration samples and keep plain spectra: "
            f"{', '.join(unseen[:3])}"
        )
    return moments
