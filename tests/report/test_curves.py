"""Curves of training: read while they are written, drawn in a line, exact as JSON."""

from __future__ import annotations

import csv
import io
import json

import pytest

from pelacli.errors import RequestError
from pelacli.report import curves


def lines(steps, every=2):
    for step in range(1, steps + 1):
        loss = 4.0 / step
        yield {
            "step": step,
            "epoch": step / 10,
            "loss": loss,
            "losses": {"feature": loss / 4, "task": 3 * loss / 4},
            "lr": 1e-3,
            "samples_per_s": 100.0,
        }
        if step % every == 0:
            yield {"step": step, "epoch": step / 10, "metrics": {"accuracy": 50.0 + step % 4}}


def write(folder, steps=6, tail=""):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines(steps)) + tail
    (folder / curves.FILE).write_text(text)
    return folder


def test_a_course_has_a_series_of_each_figure(tmp_path):
    course = curves.read(write(tmp_path / "pretrain") / curves.FILE)
    assert (course.step, course.epoch, course.going_on) == (6, 0.6, False)
    assert list(course.series) == [
        "loss", "losses/feature", "losses/task", "metrics/accuracy", "lr", "samples_per_s",
    ]  # fmt: skip
    assert course.series["losses/feature"] == [(s, 1.0 / s) for s in range(1, 7)]
    assert course.series["metrics/accuracy"] == [(2, 52.0), (4, 50.0), (6, 52.0)]


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    going_on = write(tmp_path / "pretrain.training", 3, tail='{"step": 4, "epo')
    course = curves.read(going_on / curves.FILE)
    assert (course.step, course.going_on) == (3, True)
    broken = write(tmp_path / "other", 3, tail='{"step": 4, "epo\n')
    with pytest.raises(RequestError, match=r"metrics\.jsonl:5: not a line of metrics"):
        curves.read(broken / curves.FILE)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(RequestError, match="has no figures yet"):
        curves.read(tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    "line", ['{"step": Infinity, "epoch": 0}', "[" * 100_000, '{"step": 1}', "3", "{"]
)
def test_what_is_no_line_is_named_by_its_number(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "epoch": 0.5}}\n{line}\n')
    with pytest.raises(RequestError, match=r"metrics.jsonl:2: not a line of metrics"):
        curves.read(tmp_path / "metrics.jsonl")


def test_figures_that_are_no_numbers_are_left_out(tmp_path):
    (tmp_path / curves.FILE).write_text(
        '{"step": 1, "epoch": 0.1, "metrics": {"accuracy": NaN, "loss": 2.0, "cosine": null}}\n'
    )
    assert curves.read(tmp_path / curves.FILE).series == {"metrics/loss": [(1, 2.0)]}


def test_a_sparkline_spreads_the_means_over_eight_bars():
    rising = [(step, float(step)) for step in range(8)]
    assert curves.sparkline(rising, 8) == "▁▂▃▄▅▆▇█"
    assert curves.sparkline(rising[::-1][:1], 8) == "▄"
    assert curves.sparkline([(s, 8 - v) for s, v in rising], 4) == "█▆▃▁"  # means of two
    assert curves.sparkline([(0, 1.0), (1, 2.0), (9, 3.0)], 3) == "▁▁█"  # 1.5, still, 3
    assert curves.sparkline([], 8) == ""


def test_the_best_is_the_smallest_of_losses_and_the_largest_of_metrics():
    points = [(1, 3.0), (2, 1.0), (3, 2.0)]
    for name in ("loss", "losses/task", "metrics/loss", "metrics/relative_error"):
        assert curves.best(name, points) == (2, 1.0)
    for name in ("metrics/accuracy", "metrics/cosine"):
        assert curves.best(name, points) == (1, 3.0)
    assert curves.best("lr", points) is None


def test_runs_are_found_by_any_name_of_theirs(tmp_path):
    root = tmp_path / "run"
    done, going = write(root / "dense"), write(root / "pretrain.training")
    assert list(curves.metrics_files(str(root))) == [str(done), str(going)]
    assert list(curves.metrics_files(str(tmp_path))) == [str(done), str(going)]
    assert list(curves.metrics_files(str(root / "pretrain"))) == [str(going)]  # still to come
    assert list(curves.metrics_files(str(done / curves.FILE))) == [str(done / curves.FILE)]
    assert curves.metrics_files(str(tmp_path / "nothing")) == {}


def test_report_draws_a_run_that_is_going_on(pela, here):
    write(here / "run" / "pretrain.training", 40)
    code, out, err = pela("report", "run")
    assert (code, err) == (0, "")
    assert out.startswith("run/pretrain.training: step 40, epoch 4, going on\n")
    assert max(map(len, out.splitlines())) <= 80
    (row,) = [line.split() for line in out.splitlines() if line.lstrip().startswith("loss ")]
    assert row[:4] == ["loss", "4", "0.1", "0.1"]
    assert (row[4][0], row[4][-1], len(row[4])) == ("█", "▁", 24)
    (shown,) = json.loads(pela("report", "run", "--json")[1])
    assert (shown["run"], shown["going_on"]) == ("run/pretrain.training", True)
    assert shown["series"]["loss"][:2] == [[1, 4.0], [2, 2.0]]
    text = pela("report", "run", "--curves", "--format", "csv")[1]
    points = list(csv.DictReader(io.StringIO(text)))
    assert points[1] == {
        "run": "run/pretrain.training", "figure": "loss", "step": "2", "value": "2.0",
    }  # fmt: skip


def test_report_draws_beside_the_tables_of_an_artefact(pela, artefact):
    write(artefact, 5)
    out = pela("report", "a")[1]
    assert out.index(" kind ") < out.index("a: step 5") < out.index("losses/feature")
    (model,) = json.loads(pela("report", "a", "--json")[1])
    assert model["curves"]["metrics/accuracy"] == [[2, 52.0], [4, 50.0]]
    only = pela("report", "a", "--curves")[1]
    assert only.startswith("a: step 5")
    assert " kind " not in only
    assert "| figure |" in pela("report", "a", "--curves", "--format", "markdown")[1]


def test_an_artefact_without_curves_is_refused_and_has_none_in_json(pela, artefact):
    code, out, err = pela("report", "a", "--curves")
    assert (code, out) == (2, "")
    assert "a: there is no metrics.jsonl; `pela heal` and `pela finetune` write one" in err
    assert pela("report", "a", "--curves", "--sweep", "0.9..0.5")[0] == 2
    assert "curves" not in json.loads(pela("report", "a", "--json")[1])[0]
