"""The learning rate of a healing step whose recipe leaves it to pela: ``lr = "auto"``."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from pelacli.train.splits import Splits

from pelacli import console
from pelacli.errors import StoppedError
from pelacli.recipe.step import Step
from pelacli.recipe.training import Pretrain
from pelacli.system import devices, files, processes
from pelacli.train import checkpoint, loop, rate_search
from pelacli.train.loop import Objective, RunOptions
from pelacli.train.run import updates

_FILE = "rate.json"  # in the folder of an unfinished run


@dataclass(frozen=True)
class Rate:
    """What was found.

    Attributes:
        settings: the section with a rate in place of "auto".
        record: the rate and the trials, as the manifest has them.
        start: the evaluation of the weights that the run begins with; None where nothing was tried.
    """

    settings: Pretrain
    record: dict[str, Any]
    start: Mapping[str, float] | None


def resolved(
    step: Step[Pretrain], module: nn.Module, data: Splits, objective: Objective, work: Path
) -> Rate:
    """The rate that short trials found.

    The module's weights are afterwards what they were; it may be on another device. A run that is
    continued takes the rate that it began with.

    Args:
        work: the run's folder, where the rate is kept.
    """
    settings, start = step.settings, None
    total, per_epoch = updates(settings, len(data.train)), len(data.train) / settings.accumulate
    if checkpoint.steps(work) and (work / _FILE).is_file():  # the run goes on
        record = json.loads((work / _FILE).read_text(encoding="utf-8"))
    elif data.validation is None:
        record = _unsearched(step, "there are no held-out samples to try rates on")
    else:
        record, start = _searched(step, module, data, objective, total, per_epoch)
    if processes.join(step.device).is_main_process:
        files.write(work / _FILE, json.dumps(record).encode())
    section = rate_search.settings_at(settings, record["lr"], total, per_epoch)
    return Rate(section, record, start)


def _unsearched(step: Step[Pretrain], why: str) -> dict[str, Any]:
    """A gentle rate, where none can be tried."""
    lr = rate_search.FIRST / 10
    console.warn(
        f"{step.name}.lr = 'auto': {why}, so it is {lr:g}; name a validation split, or a rate"
    )
    return {"lr": lr, "trials": []}


def _searched(
    step: Step[Pretrain],
    module: nn.Module,
    data: Splits,
    objective: Objective,
    total: int,
    per_epoch: float,
) -> tuple[dict[str, Any], Mapping[str, float]]:
    """(the rate and the trials, as the manifest has them; the evaluation of the start)."""
    assert objective.evaluate is not None
    steps = rate_search.steps_of_trial(total)
    # Where the teacher is: the student is evaluated beside it before it trains.
    devices.move_module(module, devices.select(step.device), step.settings.channels_last)
    weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    evaluate = objective.evaluate
    numbers = itertools.count(1)
    with console.progress("trying rates") as bar:

        def attempt(lr: float) -> Mapping[str, float]:
            which = f"{lr:.1e}, rate {next(numbers)} of at most {rate_search.most_trials()}"
            bar.begin(which, steps + 1)  # with the evaluation
            trial = rate_search.trial_settings(step.settings, lr, steps, per_epoch)
            options = RunOptions(step.seed, step.device, progress=bar)
            try:
                loop.fit(module, Objective(objective.losses), data.train, trial, options)
                metrics = evaluate(module)
                bar.advance()
                return metrics
            except StoppedError:
                raise StoppedError(
                    "stopped while rates were tried", "nothing was saved: start again"
                ) from None
            finally:
                module.load_state_dict(weights)

        start = evaluate(module)
        bearable = rate_search.Bearable.of(objective.criterion, start, steps / total)
        if bearable is None:
            return _unsearched(step, "nothing measures the student"), start
        lr, trials = rate_search.search(attempt, bearable)
    figure = bearable.figure
    tried = [{"lr": t.lr, **{k: v for k, v in t.metrics.items() if k == figure}} for t in trials]
    console.info(f"lr {lr:.1e}, from trials of {len(trials)} rates for {steps} steps each")
    return {"lr": lr, "steps": steps, "trials": tried}, start
