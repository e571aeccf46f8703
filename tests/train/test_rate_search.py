"""The learning rate of healing, where the recipe leaves it to pela."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from tiny_healing import decomposed, plain_images
from watched_progress import watch

from pelacli.artefact import loading
from pelacli.console import Progress
from pelacli.errors import PelaError
from pelacli.recipe import layout
from pelacli.recipe.step import step_of
from pelacli.recipe.training import Pretrain
from pelacli.steps import pretrain
from pelacli.system import devices
from pelacli.train import healing, rate_search
from pelacli.train.checkpoint import NotFiniteError
from pelacli.train.criterion import Criterion
from pelacli.train.rate_search import (
    Bearable,
    most_trials,
    search,
    settings_at,
    steps_of_trial,
    trial_settings,
)

KL = Criterion(smaller=("kl",))
BEARABLE = Bearable.of(KL, {"kl": 1.0}, share=0.0)


def harms_from(limit):
    """An attempt after which the student is much worse where the rate is above a limit."""
    return lambda lr: {"kl": 1.1 if lr <= limit else 1.3}


@pytest.mark.parametrize("limit", [1e-6, 1e-5, 3e-5, 1e-4, 8e-4])
def test_the_rate_is_the_largest_that_is_borne(limit):
    lr, trials = search(harms_from(limit), BEARABLE)
    assert limit / 3 < lr <= limit
    assert len(trials) <= 7


def test_where_no_rate_is_borne_the_gentlest_is_taken():
    lr, trials = search(lambda lr: {"kl": 2.0}, BEARABLE)
    assert lr == min(trial.lr for trial in trials)
    assert lr < 1e-6


def test_how_many_rates_are_tried_at_most_is_known_before():
    lengths = [len(search(lambda lr, kl=kl: {"kl": kl}, BEARABLE)[1]) for kl in (0.0, 2.0)]
    assert max(lengths) == most_trials()


def test_a_trial_that_is_the_whole_run_must_not_lose_anything():
    whole = Bearable.of(KL, {"kl": 1.0}, share=1.0)
    assert whole.holds({"kl": 1.0})
    assert not whole.holds({"kl": 1.01})
    assert not BEARABLE.holds({"kl": float("nan")})


def test_of_a_tasks_metric_more_is_better():
    of_task = Bearable.of(Criterion(("accuracy",), ("kl",)), {"accuracy": 90.0, "kl": 1.0}, 0.0)
    assert of_task.holds({"accuracy": 89.0, "kl": 9.0})
    assert not of_task.holds({"accuracy": 80.0, "kl": 0.1})


def test_a_rate_whose_losses_are_not_finite_is_not_borne():
    def attempt(lr):
        if lr > 1e-5:
            raise NotFiniteError("a loss is infinite")
        return {"kl": 0.9}

    lr, _ = search(attempt, BEARABLE)
    assert lr == pytest.approx(1e-5)


def test_what_stops_a_trial_is_not_taken_for_a_bad_rate():
    def attempt(lr):
        raise PelaError("stopped at step 1 of 5")

    with pytest.raises(PelaError, match="stopped"):
        search(attempt, BEARABLE)


def test_the_schedule_goes_with_the_rate():
    section = settings_at(Pretrain(min_lr=1e-6, warmup_lr=1e-6), 2e-6, total=200, per_epoch=50)
    assert section.lr == 2e-6
    assert section.min_lr == section.warmup_lr == pytest.approx(2e-8)
    assert section.warmup_epochs == pytest.approx(0.4)  # a tenth of the run
    asked = settings_at(Pretrain(warmup_epochs=1), 1e-4, total=200, per_epoch=50)
    assert asked.warmup_epochs == 1


@pytest.mark.parametrize(("total", "steps"), [(3, 3), (40, 5), (200, 10), (100_000, 50)])
def test_a_trial_is_a_small_part_of_the_run(total, steps):
    assert steps_of_trial(total) == steps
    section = trial_settings(Pretrain(steps=total, ema=0.9, trackers=["wandb"]), 1e-5, steps, 7)
    assert section.steps == steps
    assert section.ema is None
    assert section.trackers == []


def recipe(tmp_path, data="digits", **pretrain_section):
    return decomposed(tmp_path, data, "0.3", steps=6, **pretrain_section)


def test_healing_without_settings_is_no_worse_than_its_start_and_records_what_was_tried(
    tmp_path, monkeypatch
):
    begun, begin = [], Progress.begin

    def spy(self, part, *how):
        begun.append((part, *how))
        begin(self, part, *how)

    monkeypatch.setattr(Progress, "begin", spy)
    made = recipe(tmp_path)
    assert made.pretrain.lr == "auto"
    outcome = pretrain.run(step_of(made, "pretrain"))
    assert outcome.metrics["kl"] <= outcome.gain.start["kl"]
    record = loading.load(outcome.path).manifest.history[-1].metrics["rate_search"]
    tried = {trial["lr"]: trial["kl"] for trial in record["trials"]}
    allowed = (1 + 0.2 * (1 - 5 / 6)) * outcome.gain.start["kl"]
    assert tried[record["lr"]] <= allowed
    assert record["steps"] == 5
    shown = [(part, total) for part, total, *_ in begun if "rate " in part]
    assert shown[0] == (f"3.0e-05, rate 1 of at most {most_trials()}", 6)
    assert len(shown) == len(tried)
    assert not layout.workplace(outcome.path).exists()


def test_trials_leave_the_weights_as_they_were(tmp_path, monkeypatch):
    """A run whose every update is void gives the weights that went in, after all trials."""
    made = recipe(tmp_path, result="last")
    real = rate_search.search

    def then_nothing(*given):
        _, trials = real(*given)
        return 0.0, trials

    monkeypatch.setattr(rate_search, "search", then_nothing)
    outcome = pretrain.run(step_of(made, "pretrain"))
    before = loading.load(layout.folder(made, "decompose")).module.state_dict()
    after = loading.load(outcome.path).module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_that_is_continued_keeps_its_rate(tmp_path, monkeypatch):
    made = recipe(tmp_path)
    done = pretrain.run(step_of(made, "pretrain"))
    whole = (done.path / "model.safetensors").read_bytes()
    searches, steps = [], []
    real = rate_search.search

    def counted(*given):
        searches.append(1)
        return real(*given)

    def note(n):
        steps.append(n)
        if sum(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(rate_search, "search", counted)
    watch(monkeypatch, note, "pretrain")
    with pytest.raises(PelaError, match="stopped at step 3 of 6; continue with --resume"):
        pretrain.run(step_of(made, "pretrain"))
    pretrain.run(step_of(made, "pretrain"), resume=True)
    assert len(searches) == 1
    assert (done.path / "model.safetensors").read_bytes() == whole


def test_without_held_out_samples_the_rate_is_gentle_and_told(tmp_path, capsys):
    made = recipe(tmp_path, data=plain_images(tmp_path / "images", 12))
    outcome = pretrain.run(step_of(made, "pretrain"))
    assert outcome.gain is None
    said = " ".join(capsys.readouterr().err.split())
    assert "too few samples to hold some out" in said
    assert "lr = 'auto': there are no held-out samples to try rates on, so it is 3e-06" in said


def test_the_student_is_evaluated_where_its_teacher_is_and_its_start_once(tmp_path, monkeypatch):
    made = recipe(tmp_path)
    moved, evaluated_before_a_move, evaluations = [], [], []
    real_move, real_evaluate = devices.move_module, healing.Stage.evaluate

    def move(module, *given):
        moved.append(module)
        return real_move(module, *given)

    def evaluate(self, module, data):
        evaluated_before_a_move.append(all(module is not known for known in moved))
        evaluations.append(1)
        return real_evaluate(self, module, data)

    monkeypatch.setattr(devices, "move_module", move)
    monkeypatch.setattr(healing.Stage, "evaluate", evaluate)
    outcome = pretrain.run(step_of(made, "pretrain"))
    assert not evaluated_before_a_move[0]
    trials = len(outcome.gain.search["trials"])
    assert len(evaluations) == 1 + trials + 6  # the start, each trial, each of the six steps


def test_a_run_that_is_stopped_while_rates_are_tried_says_so_and_starts_again(
    tmp_path, monkeypatch
):
    made = recipe(tmp_path)

    def stop(n):
        if n:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        watch(patch, stop, "trying rates")
        with pytest.raises(PelaError, match="stopped while rates were tried; nothing was saved"):
            pretrain.run(step_of(made, "pretrain"))
    assert pretrain.run(step_of(made, "pretrain")).path.is_dir()
