"""Training: one plain loop on accelerate, for the healing stage and for any task.

The whole state of a run is its step, the weights (and their average) and the optimizer's moments:
the data's order, every random number and the learning rate are functions of the seed and the step.
So a run that was stopped and continued gives the same weights as one that never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

if TYPE_CHECKING:
    from pelacli.recipe.training import Train

from pelacli.console import info, warn
from pelacli.data.loader import Batch
from pelacli.errors import PelaError, StoppedError
from pelacli.system.devices import move_module
from pelacli.train import acceleration, checkpoint, compilation, optim, recompute
from pelacli.train.criterion import Criterion
from pelacli.train.journal import Journal
from pelacli.train.run import Run, updates
from pelacli.train.stopping import stopping
from pelacli.train.update import Learner, update
from pelacli.train.weights import Losses, distribute


class Batches(Protocol):
    """What the loop needs of a loader; `pelacli.data.loader.Loader` is one."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def set_epoch(self, epoch: int, start: int = 0) -> None: ...
    def close(self) -> None: ...


class Progress(Protocol):
    """A progress display; `pelacli.console.progress` gives one."""

    def start_at(self, done: float) -> None: ...
    def advance(self, n: float = 1, **fields: object) -> None: ...


@dataclass(frozen=True)
class Objective:
    """What a run minimises, and what its weights are judged by.

    Attributes:
        losses: (the module, a batch on its device, the share of the run that is over) → named
            scalars, weights already applied. Their sum is minimised; each is logged. It is called
            once per batch, under autocast, and is the whole forward pass, a teacher's included.
            The share, 0 to 1, follows from the step, so that losses which change during a run
            change alike in a run that was stopped and continued.
        evaluate: called after every ``eval_every`` epochs and at the end of the run, on all
            processes, with the averaged model where there is one.
        criterion: the figures of ``evaluate`` by which ``checkpoints/best-…`` is kept.
        judges_start: whether the weights are evaluated before the first update too, so that they
            may be the best.
    """

    losses: Losses
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None
    criterion: Criterion = field(default_factory=Criterion)
    judges_start: bool = False


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out.

    Attributes:
        seed: of everything random.
        device: "auto", "cpu", or a kind of accelerator.
        output: where ``checkpoints/`` and ``metrics.jsonl`` go. Without it nothing is written.
        resume: go on from the newest checkpoint, if there is one.
        progress: is told of every update.
        start: the evaluation of the weights that the run begins with, where it is known already.
    """

    seed: int = 0
    device: str = "auto"
    output: Path | None = None
    resume: bool = False
    progress: Progress | None = None
    start: Mapping[str, float] | None = None


@dataclass
class Trained:
    """What came of a run.

    Attributes:
        steps: optimizer updates since the run began, before it was stopped and continued too.
        metrics: the last evaluation; the best one where its weights are the result.
        losses: means over the updates of the last line in metrics.jsonl.
        start: the evaluation before the first update, where the objective asks for it.
        last: the evaluation at the end, whichever weights are the result.
        best: {"step": …, "value": …} of the best evaluation, None where there was none.
        seconds: of this process, without the time before the run was continued.
    """

    steps: int
    metrics: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] | None = None
    seconds: float = 0.0


def fit(
    module: nn.Module,
    objective: Objective,
    loader: Batches,
    settings: Train,
    options: RunOptions | None = None,
) -> Trained:
    """Train the module in place. It ends in eval mode, with the averaged weights if ``ema`` is on,
    or with those of the best evaluation if ``result`` is "best". Weights in half precision become
    float32.

    Args:
        loader: a batch is what one forward and backward pass of all processes takes together.
        settings: the recipe's section.

    Raises:
        RequestError: settings that name no optimizer, schedule …; an unfinished run is in
            ``output`` and ``resume`` is off, or it was started with other data or another seed.
        PelaError: a loss became infinite or NaN.
        StoppedError: SIGINT or SIGTERM came, after which the step was ended and a checkpoint
            written.
    """
    began = time.perf_counter()
    options = options or RunOptions()
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in module.parameters()):
        module.float()  # small steps are lost in half precision; ``precision`` is for the passes
    run = Run(updates(settings, len(loader)), options.seed, len(loader), settings.accumulate)
    with recompute.checkpointing(module, on=settings.checkpointing):
        learner = _prepare(module, objective, settings, options, run)
        with compilation.compiled_blocks(learner.weights.trained, on=settings.compile):
            losses = _train(learner, objective, loader, options, run)
    last = run.metrics
    _take_result(learner, module, options.output, run)
    best = run.best and {name: run.best[name] for name in ("step", "value")}
    return Trained(
        run.step, run.metrics, losses, run.start, last, best, time.perf_counter() - began
    )


def _prepare(
    module: nn.Module, objective: Objective, settings: Train, options: RunOptions, run: Run
) -> Learner:
    """The weights and what changes them, where the run starts or goes on."""
    accelerator = acceleration.accelerator(settings, options.device, options.output)
    average = partial(optim.average, decay=settings.ema)
    weights = distribute(accelerator, module, objective.losses, average, settings.channels_last)
    optimizer = optim.optimizer(weights.trained, settings)
    scheduler = optim.schedule(optimizer, settings, run.total, run.batches / run.accumulate)
    states = None
    if options.output is not None:
        states = checkpoint.begin(
            run,
            options.output,
            weights.modules,
            resume=options.resume,
            main=accelerator.is_main_process,
        )
        if states and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(states["scaler"])
        accelerator.wait_for_everyone()
    learner = Learner(accelerator, settings, weights, weights.start(optimizer, states), scheduler)
    learner.enter_training()
    return learner


def _train(
    learner: Learner, objective: Objective, loader: Batches, options: RunOptions, run: Run
) -> dict[str, float]:
    """Update the weights until the run is over; evaluate and save them on the way.

    Returns:
        The losses of the last line in metrics.jsonl.
    """
    settings, output = learner.settings, options.output
    journal = Journal(learner.accelerator, output, run.step, settings.log_every)
    batches = _stream(loader, run.step * settings.accumulate)
    if options.progress and run.step:
        options.progress.start_at(run.step)
    saved = run.step
    with closing(loader), closing(journal), stopping(learner.accelerator) as is_stop_requested:
        _evaluate_start(learner, objective, journal, options, run)
        while True:
            if is_stop_requested():
                if run.step > saved:
                    _save(learner, output, run)
                raise _stopped(run, output)
            if (
                objective.evaluate
                and run.step > run.evaluated
                and run.evaluation_due(settings.eval_every)
            ):
                _evaluate(learner, objective, journal, output, run)
                saved = -1  # a checkpoint of this step may exist, but without these metrics
            if run.step > saved and run.save_due(settings.save_every):
                _save(learner, output, run)
                saved = run.step
            if run.step >= run.total:
                return journal.last
            done = update(learner, batches, run, output)
            journal.update(run.step, run.epoch, done, last=run.step == run.total)
            if options.progress:
                main = objective.criterion.main(run.metrics)
                best = {f"best {main}": run.best["value"]} if run.best else {}
                options.progress.advance(1, **journal.fields(done), **best)


def _evaluate_start(
    learner: Learner, objective: Objective, journal: Journal, options: RunOptions, run: Run
) -> None:
    """Evaluate the weights that the run begins with, where the objective asks for it."""
    if run.step or not objective.judges_start:
        return
    _evaluate(learner, objective, journal, options.output, run, options.start)
    run.start = run.metrics
    if main := objective.criterion.main(run.start):
        info(f"before the first step: {main.replace('_', ' ')} {run.start[main]:.4g}")


def _evaluate(
    learner: Learner,
    objective: Objective,
    journal: Journal,
    output: Path | None,
    run: Run,
    known: Mapping[str, float] | None = None,
) -> None:
    """Evaluate the weights, note the figures, and keep the weights if they are the best so far.

    Args:
        known: the figures, where the weights have been evaluated before.
    """
    assert objective.evaluate is not None
    with learner.weights.result() as result:
        run.metrics = dict(objective.evaluate(result) if known is None else known)
        run.evaluated = run.step
        learner.enter_training()
        if run.metrics:
            journal.metrics(run.step, run.epoch, run.metrics)
        is_best = run.improves(objective.criterion)
        if is_best and output is not None and learner.accelerator.is_main_process:
            checkpoint.save(output, "best", run, {"model": result})


def _save(learner: Learner, output: Path | None, run: Run) -> None:
    """Write a checkpoint if there is an output, and remove old ones. All processes must call it."""
    accelerator, weights = learner.accelerator, learner.weights
    if output is not None:
        weights.gather()
        states = weights.states()
        if accelerator.scaler is not None:
            states["scaler"] = accelerator.scaler.state_dict()
        if accelerator.is_main_process:
            checkpoint.check_finite(weights.modules["model"], run.step, output)
            checkpoint.save(output, "step", run, weights.modules, states)
            checkpoint.prune(output, learner.settings.keep)
    accelerator.wait_for_everyone()  # or a launcher kills the writer when the others are gone


def _stopped(run: Run, output: Path | None) -> StoppedError:
    remedy = "continue with --resume" if output else "nothing was saved, as no output was given"
    return StoppedError(f"stopped at step {run.step} of {run.total}", remedy)


def _take_result(learner: Learner, module: nn.Module, output: Path | None, run: Run) -> None:
    """Fill the module with the weights that are the run's result, and put it into eval mode."""
    weights = learner.weights
    weights.gather()
    if "ema" in weights.modules:
        module.load_state_dict(weights.modules["ema"].state_dict())
    if learner.settings.result == "best" and output is not None:
        learner.accelerator.wait_for_everyone()  # for the first process to have written it
        metrics = checkpoint.load_best(output, run, module)
        if metrics is None:
            warn("result = 'best': nothing was evaluated, so these are the last weights")
        run.metrics = metrics or run.metrics
    move_module(module, learner.accelerator.device).eval()


def _stream(loader: Batches, start: int) -> Iterator[Batch]:
    """Batches without end, from number ``start`` on, counted over all epochs."""
    epoch, first = divmod(start, len(loader))
    while True:
        loader.set_epoch(epoch, first)
        batch = None
        for batch in loader:
            yield batch
        if batch is None:  # a stream whose every share is smaller than a batch, say
            raise PelaError("the training data gave no full batch: lower batch_size or workers")
        epoch, first = epoch + 1, 0
