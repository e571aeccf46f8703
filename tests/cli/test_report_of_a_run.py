"""`pela report RUN` shows what stands, whatever is still to come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def run_folder(artefact) -> Path:
    """A run whose first step is done."""
    Path("run").mkdir()
    return artefact.rename("run/decompose").parent


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pretrain.training", ""),
        ("pretrain.training", '{"step": 1, "epo'),
        ("pretrain", '{"step": 1\n{"step": 2, "epoch": 0.1, "loss": 1.0}\n'),
        ("pretrain.training", "\0" * 50 + "\n"),
    ],
    ids=["empty", "half a first line", "a broken line", "zeros"],
)
def test_a_course_that_cannot_be_read_is_left_out_with_a_line(run_folder, pela, name, content):
    (run_folder / name).mkdir()
    (run_folder / name / "metrics.jsonl").write_text(content)
    code, out, err = pela("report", run_folder, "--json")
    assert code == 0, err
    assert [model["model"] for model in json.loads(out)]
    assert f"note: run/{name}/metrics.jsonl:" in err
    for asked in ((run_folder / name,), (run_folder / name, "--curves")):
        code, out, err = pela("report", *asked)  # alone, it is all that was asked for
        assert (code, out) == (2, "")
        assert "metrics.jsonl" in err


def test_other_courses_of_the_run_are_drawn(run_folder, pela):
    for name, content in {
        "pretrain.training": '{"step": 1, "epoch": 0.1, "loss": 1.0}\n{"step"',
        "finetune.training": "",
    }.items():
        (run_folder / name).mkdir()
        (run_folder / name / "metrics.jsonl").write_text(content)
    code, out, err = pela("report", run_folder, "--curves")
    assert code == 0
    assert "run/pretrain.training: step 1" in out
    assert "finetune.training/metrics.jsonl: has no figures yet" in err
