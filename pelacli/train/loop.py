"""Training: one plain loop on accelerate, for the healing stage and for any task.

The whole state of a run is its step, the weights (and their average) and the optimizer's moments:
the data's order, every random number and the learning rate are functions of the seed and the step.
So a run that was stopped and continued gives the same weights as one that never stopped, and there
is little that a checkpoint could forget.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

if TYPE_CHECKING:
    from pelacli.recipe.schema import Train

from pelacli.console import warn
from pelacli.data.loader import Batch
from pelacli.data.seeding import seed_all
from pelacli.errors import PelaError, RequestError
from pelacli.system.devices import move_batch, move_module
from pelacli.train import checkpoint, compilation, engine, optim, recompute
from pelacli.train import run as train_run
from pelacli.train.journal import Journal
from pelacli.train.run import updates
from pelacli.train.stopping import stopping
from pelacli.train.weights import Losses, hold

_MODEL = 3  # its random numbers are kept apart from those of the loader's samples, batches, order


class Batches(Protocol):
    """What the loop needs of a loader; `pelacli.data.loader.Loader` is one."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def set_epoch(self, epoch: int, start: int = 0) -> None: ...
    def close(self) -> None: ...


class Shows(Protocol):
    """A progress display; `pelacli.console.progress` gives one."""

    def advance(self, n: float = 1, **fields: object) -> None: ...


@dataclass
class Trained:
    """What came of a run.

    Attributes:
        steps: optimizer updates, all runs that it was continued over together.
        metrics: the last evaluation; the best one where its weights are the result.
        losses: means over the last logged stretch.
        best: {"step": …, "value": …} of the main metric, None without one.
        seconds: of this process; a continued run's earlier time is not in it.
    """

    steps: int
    metrics: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] | None = None
    seconds: float = 0.0


def fit(
    module: nn.Module,
    losses: Losses,
    loader: Batches,
    settings: Train,
    *,
    seed: int = 0,
    output: Path | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    main_metric: str | None = None,
    no_weight_decay: Collection[str] = (),
    resume: bool = False,
    device: str = "auto",
    progress: Shows | None = None,
    before: Callable[[float], None] | None = None,
) -> Trained:
    """Train the module in place; it ends in eval mode, with the averaged weights if ``ema`` is on,
    and with those of the best evaluation if ``result`` is "best". Weights that are stored in half
    precision are trained, and are then, in float32.

    Args:
        losses: (the module, a batch on its device) → named scalars, weights already applied. Their
            sum is minimised; each is logged. It is called once per batch, under autocast, and is
            the whole forward pass: other networks it needs (a teacher) are its own affair.
        loader: its batch is what one forward and backward pass of all processes takes together.
        settings: see `pelacli.recipe.schema.Train`.
        output: where ``checkpoints/`` and ``metrics.jsonl`` go. Without it nothing is written.
        evaluate: called at the end of every ``eval_every`` epochs and of the run, on all processes,
            with the averaged model where there is one.
        main_metric: the figure of ``evaluate``, larger is better, by which ``checkpoints/best-…``
            is kept.
        no_weight_decay: parameter names (wildcards allowed) beside biases and all of one dimension
            or none, which never decay.
        resume: go on from the newest checkpoint, if there is one.
        device: "auto", "cpu", or a kind of accelerator.
        before: called before each update with the share of the run that is over, for losses that
            change on the way. As the share follows from the step, they continue as they were.

    Raises:
        RequestError: settings that name no optimizer, schedule …; an unfinished run is in
            ``output`` and ``resume`` is off, or it was started with other data or another seed.
        PelaError: a loss became infinite or NaN; or SIGINT or SIGTERM came, after which the step
            was ended and a checkpoint written.
    """
    began = time.perf_counter()
    accelerator = engine.accelerator(settings, device, output)
    main = accelerator.is_main_process
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in module.parameters()):
        module.float()  # small steps are lost in half precision; ``precision`` is for the passes
    if settings.checkpointing:
        recompute.set_checkpointing(module, True)
    batches, accumulate = len(loader), settings.accumulate
    run = train_run.Run(updates(settings, batches), seed, batches, accumulate)
    average = partial(optim.average, decay=settings.ema)
    weights = hold(accelerator, module, losses, average, settings.channels_last)
    optimizer = optim.optimizer(weights.trained, settings, no_weight_decay)
    scheduler = optim.schedule(optimizer, settings, run.total, batches / accumulate)
    states = None
    if output is not None:
        states = checkpoint.begin(run, output, weights.modules, resume=resume, main=main)
        if states and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(states["scaler"])
        accelerator.wait_for_everyone()
    stepper = weights.start(optimizer, states)
    trained = weights.trained.train()
    if settings.compile:
        compilation.compile_blocks(trained, True)
    journal = Journal(accelerator, output, run.step, settings.log_every)
    stream = _stream(loader, run.step * accumulate)
    if progress:
        progress.advance(run.step)

    def save() -> None:
        if output is not None:
            weights.gather()
            states = weights.states()
            if accelerator.scaler is not None:
                states["scaler"] = accelerator.scaler.state_dict()
            if main:
                _check_weights(module, run.step, output)
                checkpoint.save(output, "step", run, weights.modules, states)
                checkpoint.prune(output, settings.keep)
        accelerator.wait_for_everyone()  # or a launcher kills the writer when the others are gone

    saved = run.step
    with closing(loader), closing(journal), stopping(accelerator) as stopped:
        while True:
            if stopped():
                if run.step > saved:
                    save()
                raise PelaError(f"stopped at step {run.step} of {run.total}" + _remedy(output))
            if evaluate and run.step > run.evaluated and run.evaluation_due(settings.eval_every):
                with weights.result() as result:
                    run.metrics, run.evaluated = dict(evaluate(result)), run.step
                    saved = -1  # a checkpoint of this step, made on the way out, lacks the metrics
                    trained.train()
                    if run.metrics:
                        journal.metrics(run.step, run.epoch, run.metrics)
                    if run.improves(main_metric) and output is not None and main:
                        checkpoint.save(output, "best", run, {"model": result})
            if run.step > saved and run.save_due(settings.save_every):
                save()
                saved = run.step
            if run.step >= run.total:
                break

            if scheduler is not None:  # the rate of this update, not of the one before
                scheduler.step_update(run.step)
            if before:
                before(run.step / run.total)
            values: dict[str, Tensor] = {}
            for part in range(accumulate):
                batch = move_batch(next(stream), accelerator.device, settings.channels_last)
                seed_all(seed, _MODEL, run.step * accumulate + part, accelerator.process_index)
                with weights.syncing(part == accumulate - 1):
                    named = weights.forward(batch)
                    accelerator.backward(_total(named) / accumulate)
                for name, value in named.items():
                    values[name] = values.get(name, 0.0) + value.detach().float() / accumulate
                journal.samples += _samples(batch) * accelerator.num_processes
            figures = _means(accelerator, values)
            if not all(math.isfinite(value) for value in figures.values()):
                raise _not_finite(run.step + 1, figures, output)
            if settings.clip_grad is not None:
                accelerator.clip_grad_norm_(trained.parameters(), settings.clip_grad)
            if settings.factor_decay == "product" and settings.weight_decay:
                optim.decay_products(trained, optimizer, settings.weight_decay)
            stepper.step()
            stepper.zero_grad()
            run.step += 1
            weights.update(run.step)

            rate = optim.rate(optimizer)
            journal.update(run.step, run.epoch, figures, rate, last=run.step == run.total)
            if progress:
                best = {f"best {main_metric}": run.best["value"]} if run.best else {}
                progress.advance(1, **journal.shown(figures, rate), **best)

    if settings.compile:
        compilation.compile_blocks(trained, False)
    weights.gather()
    if "ema" in weights.modules:
        module.load_state_dict(weights.modules["ema"].state_dict())
    if settings.result == "best" and output is not None:
        accelerator.wait_for_everyone()  # for the first process to have written it
        metrics = checkpoint.load_best(output, module)
        if metrics is None:
            warn("result = 'best': nothing was evaluated, so these are the last weights")
        run.metrics = metrics or run.metrics
    if settings.checkpointing:
        recompute.set_checkpointing(module, False)
    move_module(module, accelerator.device).eval()
    seconds = time.perf_counter() - began
    return Trained(run.step, run.metrics, journal.last, run.best, seconds)


def _stream(loader: Batches, start: int) -> Iterator[Batch]:
    """Batch number ``start``, counted over all epochs, and those after it."""
    epoch, first = divmod(start, len(loader))
    while True:
        loader.set_epoch(epoch, first)
        batch = None
        for batch in loader:
            yield batch
        if batch is None:  # a stream whose every share is smaller than a batch, say
            raise PelaError("the training data gave no full batch: lower batch_size or workers")
        epoch, first = epoch + 1, 0


def _total(named: Mapping[str, Tensor]) -> Tensor:
    total = torch.stack([value.float() for value in named.values()]).sum() if named else None
    if total is None or not total.requires_grad:
        raise RequestError("nothing to train on: no loss with a weight above 0 reaches the model")
    return total


def _samples(batch: Batch) -> int:
    inputs = batch["inputs"]
    return len(inputs if isinstance(inputs, Tensor) else next(iter(inputs.values())))


def _means(accelerator: Accelerator, values: Mapping[str, Tensor]) -> dict[str, float]:
    """The losses as numbers, averaged over processes: all see a NaN that one has."""
    stacked = torch.stack(list(values.values()))
    if accelerator.num_processes > 1:
        stacked = accelerator.reduce(stacked, "mean")
    return dict(zip(values, stacked.tolist(), strict=True))


def _not_finite(step: int, figures: Mapping[str, float], output: Path | None) -> PelaError:
    shown = ", ".join(f"{name} {value:g}" for name, value in figures.items())
    good = checkpoint.steps(output)[-1:] if output else []
    return PelaError(
        f"not finite at step {step}: {shown}; last good checkpoint: "
        f"{good[0] if good else 'none'}; a lower lr, clip_grad or precision 'no' may help"
    )


def _check_weights(module: nn.Module, step: int, output: Path) -> None:
    """Finite losses can still leave infinite weights behind, which no checkpoint may hold."""
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise _not_finite(step, {name: math.nan}, output)


def _remedy(output: Path | None) -> str:
    return "; continue with --resume" if output else "; nothing was saved, as no output was given"
