"""Dense model → moments → spectra: what `pelacli.steps.solved` goes on from.

The decompose step and the Python interface both go this way; they differ in where the model comes
from, who chooses the plan, and what becomes of the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from pelacli import console
from pelacli.artefact import description
from pelacli.factorize import calibration, engine
from pelacli.factorize.batches import cut, hold_back, join, samples_in, share, tokens_in
from pelacli.factorize.blockwise import collect
from pelacli.factorize.engine import Keep
from pelacli.factorize.moments import Moments
from pelacli.factorize.passes import Passes
from pelacli.measure.held_back import HeldBack
from pelacli.models import filling
from pelacli.models.blocks import blocks
from pelacli.models.inputs import TextInput
from pelacli.models.prediction import predict
from pelacli.models.token_head import TokenHead, token_head
from pelacli.steps.blockwise import Blockwise, Choice, blockwise
from pelacli.steps.dense import DenseModel
from pelacli.steps.scaled_spectra import with_measured_damage
from pelacli.steps.solved import Run, ShowProgress, SolvedModel, states_of
from pelacli.system import memory, processes

# Tokens that a layer should see for each of its inputs.
_TOKENS_PER_INPUT = 4
_BLOCKWISE = "let it go block by block (--blockwise, by one process)"


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
    shared = share(fitted)
    fitted = list(shared.batches)
    walk = partial(states_of, run, head)
    choice = choice or Choice()
    if processes.rank_and_size()[1] > 1:  # sections add nothing up over processes
        choice = replace(choice, wanted=False)
    corrects = correct and keep is not Keep.NOTHING
    parts = blockwise(dense, fitted, walk, seed, choice, correct=corrects) if fitted else None
    if fitted:
        remedy = _BLOCKWISE if choice.wanted is False and blocks(dense.module) else ""
        _check_memory(dense, fitted, head, parts, corrects, remedy)
    then = "then its layers are corrected" if corrects else ""
    moments: Mapping[str, Moments] = {}
    if fitted:
        counted = fitted if shared.counts else []
        moments = _moments(dense, counted, head, seed, show_progress, run, parts, then)
    if moments:
        _warn_of_few_tokens(dense, moments, count)
        if (
            samples.held_back and keep is Keep.NOTHING
        ):  # the cuts whose damage is measured are made of vectors
            keep = Keep.PLANNED
    with show_progress("reading spectra", len(dense.free)) as bar:
        solutions = engine.solve(dense.free, moments, keep=keep, advance=bar.advance)
    spectra = engine.spectra(dense.free, solutions, moments)
    solved = SolvedModel(
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
        scales={},
        corrects=correct and bool(fitted),
        show_progress=show_progress,
        run=run,
        blockwise=parts,
        counts=shared.counts,
    )
    return with_measured_damage(solved, seed)


def _check_memory(
    dense: DenseModel,
    batches: Sequence[Any],
    head: TokenHead | None,
    parts: Blockwise | None,
    correct: bool,
    remedy: str,
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
    estimate.check(available, remedy)
    # Of a lazily opened model what is in no block.
    model = sum(p.nbytes for p in dense.module.parameters() if not p.is_meta)
    # Small needs are of interest to who watches; large ones belong into a log too.
    say = console.say if estimate.peak + model >= memory.LARGE else console.info
    say(
        f"needs about {memory.text(estimate.peak)} beside the model's {memory.text(model)}; "
        f"{memory.text(available)} are free"
    )


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
    return HeldBack(
        dense.module,
        samples,
        run,
        head,
        causal=causal,
        blockwise=blockwise,
        layers=dense.free,
    )


def _moments(
    dense: DenseModel,
    batches: Sequence[Any],
    head: TokenHead | None,
    seed: int,
    show_progress: ShowProgress,
    run: Run,
    parts: Blockwise | None,
    then: str,
) -> Mapping[str, Moments]:
    passes = Passes(seed=seed)
    times = 1 if parts is None else len(parts.sections)
    with show_progress("calibrating", times * sum(map(samples_in, batches))) as bar:
        # Block by block, all batches go through the whole model before the first is counted.
        bar.announce(warm=0 if parts is None else 1, then=then)
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
        see = "1 layer sees" if len(few) == 1 else f"{len(few)} layers see"
        console.warn(
            f"{see} fewer than {_TOKENS_PER_INPUT} tokens for each input "
            f"({layer.name}: {tokens:,} tokens for {layer.shape[1]:,} inputs); calibrate on more"
        )
