"""What was measured of an artefact is kept beside its manifest, and holds for it as it is now."""

from __future__ import annotations

import json

from pelacli.manifest import document, evaluations
from pelacli.manifest.evaluations import EvaluationRecord


def artefact_at(folder, text="{}"):
    folder.mkdir(exist_ok=True)
    (folder / document.FILE).write_text(text)
    return folder


def test_what_is_measured_is_read_back_in_order(tmp_path):
    folder = artefact_at(tmp_path / "a")
    for accuracy in (90.0, float("nan")):
        evaluations.append(folder, EvaluationRecord(metrics={"accuracy": accuracy}, max_drop=1.0))
    first, second = evaluations.read(folder)
    assert (first.metrics, second.metrics) == ({"accuracy": 90.0}, {"accuracy": None})
    assert first.time.endswith("+00:00")
    assert [json.loads(line)["metrics"] for line in (folder / evaluations.FILE).open()]


def test_figures_of_an_artefact_that_was_made_anew_are_left_out(tmp_path):
    folder = artefact_at(tmp_path / "a")
    evaluations.append(folder, EvaluationRecord(data="old"))
    artefact_at(folder, '{"made": "anew"}')
    assert evaluations.read(folder) == []
    evaluations.append(folder, EvaluationRecord(data="new"))
    assert [record.data for record in evaluations.read(folder)] == ["new"]


def test_a_line_that_was_cut_short_costs_no_other(tmp_path):
    folder = artefact_at(tmp_path / "a")
    evaluations.append(folder, EvaluationRecord(data="one"))
    with (folder / evaluations.FILE).open("a") as file:
        file.write('{"data": "two", "metr\n[1]\n\xff\n')
    evaluations.append(folder, EvaluationRecord(data="three"))
    assert [record.data for record in evaluations.read(folder)] == ["one", "three"]
    assert evaluations.read(tmp_path / "nothing") == []
    (folder / evaluations.FILE).rename(tmp_path / "elsewhere")
    (folder / evaluations.FILE).symlink_to(tmp_path / "elsewhere")
    assert evaluations.read(folder) == []  # it is no file of the artefact


def test_a_gate_is_passed_by_a_drop_that_is_known_and_allowed():
    assert EvaluationRecord(drop=1.0).passed is None
    assert EvaluationRecord(drop=0.5, max_drop=0.5).passed is True
    assert EvaluationRecord(drop=0.6, max_drop=0.5).passed is False
    assert EvaluationRecord(drop=float("nan"), max_drop=0.5).passed is False
