"""Healing is measured from its start on, and never gives a worse student than it was given."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_healing import decomposed, plain_images

from pelacli import console
from pelacli.artefact import loading
from pelacli.data.held_out import divided
from pelacli.data.loader import loader
from pelacli.factorize import batches as calibration
from pelacli.measure.agreement import agreement
from pelacli.recipe import layout
from pelacli.recipe.step import step_of
from pelacli.report import curves
from pelacli.steps import pretrain
from pelacli.tasks import registry
from pelacli.train.criterion import Criterion
from pelacli.train.run import Run


def weights(path):
    return loading.load(path).module.state_dict()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


@pytest.fixture(autouse=True)
def messages(monkeypatch):
    """As the command line shows them."""
    monkeypatch.setattr(console.verbosity, "verbose", True)


def test_a_rate_that_ruins_the_student_leaves_the_weights_that_went_in(tmp_path, capsys):
    made = decomposed(tmp_path, lr=1.0)
    outcome = pretrain.run(step_of(made, "pretrain"))
    before = weights(layout.folder(made, "decompose"))
    assert same(weights(outcome.path), before)
    assert outcome.gain.helped is False
    assert outcome.gain.step == 0
    assert outcome.metrics == outcome.gain.start
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "did not help" in x]
    assert "lr 1 is likely too high" in line
    assert "10 steps may be too few" in line
    written = loading.load(outcome.path).manifest.history[-1].metrics
    assert written["helped"] is False
    assert written["start"] == outcome.gain.start


def test_a_rate_that_is_right_is_told_from_its_start_on(tmp_path, capsys):
    made = decomposed(tmp_path, ratio="0.3", lr=3e-5, min_lr=0.0, loss={"logits": 1.0})
    outcome = pretrain.run(step_of(made, "pretrain"))
    gain = outcome.gain
    assert gain.helped is True
    assert gain.figure == "kl"
    assert outcome.metrics["kl"] < gain.start["kl"]
    err = capsys.readouterr().err
    assert f"before the first step: kl {gain.start['kl']:.4g}" in err
    assert f"healing: kl {gain.start['kl']:.4g} → {outcome.metrics['kl']:.4g}" in err
    lines = [json.loads(x) for x in (outcome.path / "metrics.jsonl").read_text().splitlines()]
    measured = [line["step"] for line in lines if "metrics" in line]
    assert measured == list(range(11))  # a tenth of the run is one step here
    course = curves.read(outcome.path / "metrics.jsonl")
    assert course.series["metrics/kl"][0] == (0, gain.start["kl"])


def test_the_last_weights_can_be_asked_for_and_are_told_to_be_worse(tmp_path, capsys):
    made = decomposed(tmp_path, lr=1.0, result="last")
    outcome = pretrain.run(step_of(made, "pretrain"))
    assert not same(weights(outcome.path), weights(layout.folder(made, "decompose")))
    assert outcome.gain.helped is False
    assert "healing made it worse: kl" in capsys.readouterr().err


def test_a_folder_without_splits_is_judged_on_images_that_nothing_was_fitted_to(tmp_path, capsys):
    made = decomposed(tmp_path, data=plain_images(tmp_path / "images", 40), lr=1e-4)
    outcome = pretrain.run(step_of(made, "pretrain"))
    assert "4 of 40 samples are held out" in " ".join(capsys.readouterr().err.split())
    assert outcome.gain.start["kl"] > 0


@pytest.mark.parametrize("samples", [20, 40, 256, 600, 3000])
def test_what_is_held_out_is_not_what_calibration_with_the_same_seed_fits_to(samples):
    """Calibration on 512 samples holds back the last ninth of what it draws."""
    numbers = Numbers(samples)
    train, judged = divided(numbers, numbers, seed=3)
    limit = calibration.with_held_back(512)
    drawn = loader(numbers, batch_size=32, seed=3, shuffle=True, limit=limit, pinned=False)
    fitted = calibration.hold_back([batch["inputs"] for batch in drawn]).fitted
    fitted_to = {int(x) for batch in fitted for x in batch}
    held_out = {int(judged[i]["inputs"]) for i in range(len(judged))}
    trained_on = {int(train[i]["inputs"]) for i in range(len(train))}
    assert len(held_out) == min(512, samples // 10)
    assert held_out | trained_on == set(range(samples))
    assert not held_out & trained_on
    assert not held_out & fitted_to


class Numbers:
    """A dataset whose samples are their numbers."""

    spec, source, classes = "numbers", (), None

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        return {"inputs": torch.tensor(float(index))}

    def collate(self, items):
        return {"inputs": torch.stack([item["inputs"] for item in items])}


def test_too_few_samples_are_not_divided():
    assert divided(Numbers(19), Numbers(19), seed=3) is None


def test_the_divergence_is_that_of_the_distributions():
    torch.manual_seed(0)
    batch = {"inputs": torch.randn(6, 5)}
    one, other = torch.nn.Linear(5, 4), torch.nn.Linear(5, 4)
    figures = agreement(one, other, [batch], lambda m, x: m(x), classes=True, divergence=True)
    p, q = (m(batch["inputs"]).double().softmax(-1) for m in (other, one))
    expected = (p * (p.log() - q.log())).sum(-1).mean().item()
    assert figures["kl"] == pytest.approx(expected, rel=1e-5)
    plain = agreement(one, other, [batch], lambda m, x: m(x), classes=True)
    assert "kl" not in plain


def test_the_task_decides_and_the_distance_where_it_is_the_same():
    run = Run(10, 0, 1, 1)
    criterion = Criterion(("accuracy",), ("kl",))
    seen = []
    for accuracy, kl in [(80, 0.2), (80, 0.3), (80, 0.1), (79, 0.01), (81, float("nan")), (81, 5)]:
        run.step, run.metrics = run.step + 1, {"accuracy": float(accuracy), "kl": kl}
        seen.append(run.improves(criterion))
    assert seen == [True, False, True, False, True, True]


def test_labels_decide_only_where_the_student_learns_from_them(tmp_path):
    made = decomposed(tmp_path, labels=True, steps=1)
    outcome = pretrain.run(step_of(made, "pretrain"))
    assert outcome.gain.figure == registry.get("image-classification").MAIN
    assert {"kl", "relative_error", "accuracy"} <= set(outcome.gain.start)
