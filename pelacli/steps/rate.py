"""The learning rate of a healing step whose recipe leaves it to pela: ``lr = "auto"``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from pelacli.train.splits import Splits

from pelacli import console
from pelacli.recipe.step import Step
from pelacli.recipe.training import Pretrain
from pelacli.system import files, processes
from pelacli.train import checkpoint, loop, rate_search
from pelacli.train.loop import Objective, RunOptions
from pelacli.train.run import updates

_FILE = "rate.json"  # in the folder of an unfinished run


def resolved(
    step: Step[Pretrain], module: nn.Module, data: Splits, objective: Objective, work: Path
) -> tuple[Pretrain, dict[str, Any]]:
    """(the section with a rate that short trials found, what they gave).

    The module's weights are afterwards what they were. A run that is continued takes the rate that
    it began with.

    Args:
        work: the run's folder, where the rate is kept.
    """
    settings = step.settings
    total, per_epoch = updates(settings, len(data.train)), len(data.train) / settings.accumulate
    if checkpoint.steps(work) and (work / _FILE).is_file():  # the run goes on
        record = json.loads((work / _FILE).read_text(encoding="utf-8"))
    elif data.validation is None:
        record = _unsearched(step, "there are no held-out samples to try rates on")
    else:
        record = _searched(step, module, data, objective, total, per_epoch)
    if processes.join(step.device).is_main_process:
        files.write(work / _FILE, json.dumps(record).encode())
    return rate_search.settings_at(settings, record["lr"], total, per_epoch), record


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
) -> dict[str, Any]:
    """The rate and the trials, as the manifest has them."""
    assert objective.evaluate is not None
    steps = rate_search.steps_of_trial(total)
    weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    evaluate = objective.evaluate
    with console.progress("trying rates", None) as bar:

        def attempt(lr: float) -> Mapping[str, float]:
            trial = rate_search.trial_settings(step.settings, lr, steps, per_epoch)
            options = RunOptions(step.seed, step.device, progress=bar)
            try:
                loop.fit(module, Objective(objective.losses), data.train, trial, options)
                return evaluate(module)
            finally:
                module.load_state_dict(weights)

        start = evaluate(module)
        bearable = rate_search.Bearable.of(objective.criterion, start, steps / total)
        if bearable is None:
            return _unsearched(step, "nothing measures the student")
        lr, trials = rate_search.search(attempt, bearable)
    figure = bearable.figure
    tried = [{"lr": t.lr, **{k: v for k, v in t.metrics.items() if k == figure}} for t in trials]
    console.info(f"lr {lr:.1e}, from trials of {len(trials)} rates for {steps} steps each")
    return {"lr": lr, "steps": steps, "trials": tried}
