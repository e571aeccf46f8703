"""What a run tells: the line while it trains, metrics.jsonl, trackers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import accelerate.accelerator
import pytest
import torch
from accelerate import tracking
from torch import nn

from pelacli.errors import PelaError
from pelacli.recipe.training import Train
from pelacli.train import acceleration
from pelacli.train.criterion import Criterion
from pelacli.train.loop import Objective, RunOptions, fit


class Batches:
    """Four batches an epoch."""

    def __len__(self):
        return 4

    def __iter__(self):
        yield from ({"inputs": torch.full((8, 3), float(i))} for i in range(4))

    def set_epoch(self, epoch, start=0):
        pass

    def close(self):
        pass


def run(output, losses=None, **changed):
    torch.manual_seed(0)
    scores = iter([50.0, 70.0, 60.0])
    shown = []

    def plain(module, batch, done):
        value = module(batch["inputs"]).square().mean()
        return {"task": value, "feature": 0.5 * value}

    fit(
        nn.Linear(3, 2),
        Objective(
            losses or plain, lambda module: {"accuracy": next(scores)}, Criterion(("accuracy",))
        ),
        Batches(),
        Train(**({"epochs": 3, "lr": 0.01, "log_every": 2, "sched": "none"} | changed)),
        RunOptions(
            device="cpu",
            output=output,
            progress=SimpleNamespace(advance=lambda n=1, **fields: shown.append((n, fields))),
        ),
    )
    return shown


def test_the_progress_display_gets_losses_rate_speed_and_the_best_so_far(tmp_path):
    shown = run(tmp_path)
    assert [n for n, _ in shown] == [1] * 12
    names = {"loss", "task", "feature", "lr", "samples/s"}
    assert [set(fields) for _, fields in shown[:4]] == [names] * 4
    assert shown[0][1]["loss"] == pytest.approx(1.5 * shown[0][1]["task"])
    assert shown[0][1]["lr"] == 0.01
    assert all(fields["samples/s"] > 0 for _, fields in shown)  # after a line was written too
    assert [fields["best accuracy"] for _, fields in shown[4:]] == [50.0] * 4 + [70.0] * 4


class Remembers(tracking.GeneralTracker):
    """A tracker that remembers, in place of TensorBoard."""

    name = "tensorboard"
    requires_logging_directory = True
    seen: list = []  # noqa: RUF012

    def __init__(self, run_name, logging_dir, **options):
        super().__init__()
        self.seen.append(("made", run_name, str(logging_dir)))

    def start(self):
        pass

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **options):
        self.seen.append((step, values))

    def finish(self):
        self.seen.append("finished")


def test_trackers_get_every_line_and_keep_it_beside_the_run(tmp_path, monkeypatch):
    Remembers.seen.clear()
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Remembers)
    monkeypatch.setitem(accelerate.accelerator.LOGGER_TYPE_TO_CLASS, "tensorboard", Remembers)
    for module in (tracking, accelerate.accelerator):
        if hasattr(module, "filter_trackers"):
            monkeypatch.setattr(
                module, "filter_trackers", lambda log_with, *_, **__: log_with or []
            )
    output = tmp_path / "pretrain.training"
    run(output, trackers=["tensorboard"], epochs=1)
    made, *lines, end = Remembers.seen
    assert made == ("made", "pela", str(tmp_path / "tracking" / "pretrain"))
    assert end == "finished"
    written = [json.loads(line) for line in (output / "metrics.jsonl").open()]
    assert [step for step, _ in lines] == [line["step"] for line in written] == [2, 4, 4]
    assert lines[0][1]["losses/feature"] == written[0]["losses"]["feature"]
    assert lines[2][1]["metrics/accuracy"] == 50.0
    assert acceleration.tracking(output) == tmp_path / "tracking" / "pretrain"


def test_a_line_that_was_cut_short_is_dropped_when_the_run_goes_on(tmp_path):
    def losses(module, batch, done):
        losses.calls += 1
        value = module(batch["inputs"]).square().mean()
        return {"task": value * (float("nan") if losses.calls == 6 else 1.0)}

    losses.calls = 0
    with pytest.raises(PelaError, match="not finite at step 6"):
        run(tmp_path, losses, save_every=2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "epo')
    settings = Train(epochs=3, lr=0.01, log_every=2, sched="none")
    torch.manual_seed(0)
    options = RunOptions(device="cpu", output=tmp_path, resume=True)
    fit(nn.Linear(3, 2), Objective(losses), Batches(), settings, options)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()]
    assert steps == [2, 4, 4, 6, 8, 10, 12]
