"""``pela report --latency`` with times that are worked out: tables, JSON, and what is timed."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
import transformers
from generated_text import save_model
from json_output import document
from pretended_timing import LowRankTakesLonger
from refusals import refused as refused
from torch import nn

from pelacli.lowrank.find import low_rank_layers


@pytest.fixture
def timed(monkeypatch):
    timer = LowRankTakesLonger()
    monkeypatch.setattr("pelacli.measure.latency.side_by_side", timer)
    return timer


def test_an_artefact_is_timed_beside_its_dense_original(pela, artefact, timed):
    [report] = document(pela("report", "a", "--latency", "--json"))
    assert report["params"]["after"] < report["params"]["before"]
    rows = report["latency"]
    assert [row["batch_size"] for row in rows] == [1, 8, 32]
    assert [row["median_ms"] for row in rows] == [17, 52, 172]
    assert [row["dense_median_ms"] for row in rows] == [10, 80, 320]
    assert (rows[1]["lower_ms"], rows[1]["upper_ms"]) == (51, 53)
    (low, dense), _ = timed.calls[0]
    assert sum(p.numel() for p in dense.parameters()) == report["params"]["before"]
    assert low_rank_layers(low)
    assert not low_rank_layers(dense)


def test_every_format_has_the_times(pela, artefact, timed):
    ask = ("report", "a", "--latency", "--batch-size", "1,4")
    code, out, err = pela(*ask)
    assert code == 0
    assert "17 (16–18)" in out
    assert "0.59 × dense" in out
    assert "note: a: slower than dense at batch size 1 (0.59 × its speed)" in err
    rows = list(csv.DictReader(io.StringIO(pela(*ask, "--format", "csv")[1])))
    assert [row["speedup"] for row in rows] == ["0.588235", "1.25"]
    assert "| 4 | 32 (31–33) | 40 (39–41) |" in pela(*ask, "--format", "markdown")[1]


def test_plain_models_are_timed_alone_and_beside_artefacts(pela, artefact, timed):
    code, out, _ = pela("report", "a", "test_vit", "--latency", "--batch-size", "4", "--json")
    assert code == 0
    low, plain = (model["latency"][0] for model in json.loads(out))
    assert low["speedup"] == 1.25
    assert plain["dense_median_ms"] is plain["speedup"] is None


@pytest.mark.parametrize(
    ("model_type", "head"), [("llama", "CausalLM"), ("bert", "SequenceClassification")]
)
def test_models_of_transformers_get_a_plain_sample(pela, here, timed, model_type, head):
    model = save_model(model_type, head, here / "m")
    assert pela("decompose", model, "--ratio", "0.8", "-o", "small")[0] == 0
    ask = ("report", "small", "--latency", "--batch-size", "3", "--precision", "bf16")
    [report] = document(pela(*ask, "--json"))
    assert report["latency"][0]["median_ms"] == 27
    modules, inputs = timed.calls[0]
    assert inputs["input_ids"].shape[0] == inputs["attention_mask"].shape[0] == 3
    assert {p.dtype for module in modules for p in module.parameters()} == {torch.bfloat16}


def test_weights_in_half_precision_are_timed_in_it(pela, here, timed):
    model = save_model("llama", "CausalLM", here / "m")
    half = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    half.save_pretrained(model)
    assert pela("decompose", model, "--ratio", "0.8", "-o", "small")[0] == 0
    [report] = document(pela("report", "small", "--latency", "--json"))
    assert {row["precision"] for row in report["latency"]} == {"bf16"}


def test_a_model_that_fails_in_a_pass_is_refused_with_the_remedy(refused, artefact, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr("pelacli.measure.latency.side_by_side", fail)
    line = refused("report", "a", "--latency")
    assert "a: can't be timed at batch size 1 on cpu in fp32: no kernel for this; change" in line


def test_spectra_alone_can_not_be_timed(refused, artefact):
    assert "holds spectra" in refused("report", "a/spectra.safetensors", "--latency")


def test_images_are_random_and_of_the_models_precision(pela, artefact, timed):
    pela("report", "a", "--latency", "--batch-size", "2", "--precision", "fp16")
    _, images = timed.calls[0]
    assert images.dtype == torch.float16
    assert images.std() > 0.5
    assert isinstance(timed.calls[0][0][1], nn.Module)
