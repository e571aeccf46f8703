"""``pela eval`` and ``pela report``: their formats and JSON."""

from __future__ import annotations

import csv
import io
import json

import pytest
from generated_text import save_model
from json_output import document

LAYER = {"name", "shape", "rank", "reason", "energy", "params", "flops"}


def test_every_format_of_the_report_holds_every_layer(pela, artefact):
    listed = document(pela("report", "a", "--json"))
    assert set(listed[0]) >= {"model", "params", "flops", "layers"}
    assert set(listed[0]["layers"][0]) >= LAYER
    rows = list(csv.DictReader(io.StringIO(pela("report", "a", "--format", "csv")[1])))
    assert len(rows) >= 4
    assert "| kind |" in pela("report", "a", "--format", "markdown")[1]
    by_layer = pela("report", "a", "--by", "layer")[1]
    assert all(layer["name"] in by_layer for layer in listed[0]["layers"])
    plain = document(pela("report", "test_vit", "--json"))[0]
    assert plain["params"]["before"] == plain["params"]["after"]
    assert plain["flops"]["before"] > 0


def test_a_report_without_models_is_about_runs(pela, here):
    pela("decompose", "test_vit", "--weights", "random", "--ratio", "0.5")
    assert [m["model"] for m in document(pela("report", "--json"))] == ["runs/test_vit-r0.50"]


def test_report_by_whole_has_a_line_per_model(pela, artefact):
    rows = list(
        csv.DictReader(
            io.StringIO(pela("report", "a", "test_vit", "--by", "whole", "--format", "csv")[1])
        )
    )
    assert len(rows) == 2
    assert int(rows[0]["bytes"]) == (artefact / "model.safetensors").stat().st_size
    assert int(rows[1]["bytes"]) == 4 * int(rows[1]["params_after"])
    assert "a" in pela("report", "a", "--by", "whole")[1]
    assert json.loads(pela("report", ".", "--json")[1])[0]["model"] == "a"  # what is below


def test_the_json_of_eval_is_a_list_of_one_model_too(pela, artefact, monkeypatch):
    monkeypatch.setattr("pelacli.steps.latency.SECONDS", 0.02)
    keys = {"artefact", "params", "bytes", "flops", "metrics", "latency_ms", "timed"}
    [alone] = document(pela("eval", "a", "--json"))
    assert set(alone) == keys
    assert alone["latency_ms"] > 0
    assert alone["timed"]["batch_size"] == 1  # of a plain sample
    both = document(pela("eval", "a", "test_vit", "--weights", "random", "--no-latency", "--json"))
    assert [one["artefact"] for one in both] == ["a", "test_vit"]
    assert both[0]["params"] < both[1]["params"]
    assert pela("eval", "a", "--no-latency")[1].count("parameters") == 1


def test_every_format_of_eval_holds_each_model(pela, artefact):
    ask = ("eval", "a", "--against", "test_vit", "--weights", "random", "--no-latency")
    [shown] = document(pela(*ask, "--json"))
    dense, own = csv.DictReader(io.StringIO(pela(*ask, "--format", "csv")[1]))
    assert (dense["model"], own["model"], own["baseline"]) == ("test_vit", "a", "test_vit")
    assert own["bytes"] == str((artefact / "model.safetensors").stat().st_size)
    assert dense["bytes"] == str(4 * shown["baseline"]["params"])  # it has no files here
    assert dense["params"] == str(shown["baseline"]["params"])
    markdown = pela(*ask, "--format", "markdown")[1].splitlines()
    assert markdown[0] == "|  | test_vit | a |"
    assert any(line.startswith("| size | ") and " MB |" in line for line in markdown)
    code, out, err = pela(*ask, "--format", "markdown", "--json")
    assert (code, out) == (2, "")
    assert "are two formats; give one" in err
    assert pela(*ask, "--format", "yaml")[0] == 2


def test_data_without_the_labels_that_a_task_needs_is_said(pela, here):
    model = save_model("bert", "SequenceClassification", here / "lm")
    (here / "plain.txt").write_text("w1 w2\nw3 w4\n")
    ask = ("eval", model, "--data", "plain.txt", "--no-latency")
    code, out, err = pela(*ask, "--json")
    assert code == 0
    assert json.loads(out)[0]["metrics"] == {}
    assert "no labels for task 'text-classification'" in err
    assert "no labels" not in pela(*ask, "--against", model)[2]


def test_without_labels_the_gate_holds_the_agreement(pela, here):
    model = save_model("bert", "", here / "encoder")
    (here / "plain.txt").write_text("w1 w2\nw3 w4 w5\nw6\nw2 w7\n")
    pela("decompose", model, "--ratio", "0.6", "-o", "small")
    ask = ("eval", "small", "--against", model, "--data", "plain.txt", "--no-latency")
    [free] = document(pela(*ask, "--json"))
    assert free["drop"] is None
    [held] = document(pela(*ask, "--max-drop", "100", "--json"))
    dropped = held["drop"]
    assert held["drop_of"] == "cosine"
    assert dropped == pytest.approx(100 - 100 * held["agreement"]["cosine"], abs=1e-3)  # rounded
    code, out, err = pela(*ask, "--max-drop", "0")
    assert code == 3
    assert "drop of cosine" in out
    assert f"{dropped:.2f}" in out
    assert "small: agreement with the dense model (cosine) drops by" in err
    listed = pela("report", "small", model, "--html", "page.html")[1]
    assert "failed (≤ 0)" in listed
    assert f"{dropped:.2f} of cosine" in listed
    assert f"<small>cosine drops by {dropped:.2f}</small>" in (here / "page.html").read_text()


def test_a_gate_with_nothing_to_hold_says_why(pela, here):
    cut, other = (
        save_model("bert", "SequenceClassification", here / name, num_labels=classes)
        for name, classes in (("lm", 1), ("other", 3))
    )
    (here / "plain.txt").write_text("w1 w2\nw3 w4\n")
    ask = ("eval", cut, "--data", "plain.txt", "--no-latency", "--max-drop", "1", "--against")
    code, _, err = pela(*ask, cut)  # one number a sample has no direction
    assert (code, "outputs of both models can't be compared" in err) == (2, True)
    code, _, err = pela(*ask, other)
    assert (code, "outputs of both models can't be compared" in err) == (2, True)
