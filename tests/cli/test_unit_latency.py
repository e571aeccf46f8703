"""``pela decompose --unit latency`` with times that are worked out: what is planned, said, kept."""

from __future__ import annotations

import json

import pytest
from generated_text import save_model
from json_output import document
from pretended_timing import LowRankTakesLonger, pretended_layer_times
from refusals import refused as refused

from pelacli.console import figures

VIT = (
    "decompose", "vit_tiny_patch16_224", "--weights", "random", "-o", "v",
    "--set", "model_args={img_size=16,patch_size=8,embed_dim=64,depth=2,num_heads=2}",
    "--unit", "latency",
)  # fmt: skip


@pytest.fixture
def timed(monkeypatch, tmp_path_factory):
    """Times without a clock; the calls of the layers' measurement."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("pelacli.measure.latency.side_by_side", LowRankTakesLonger())
    calls = []

    def measure(*args, **kwargs):
        calls.append(args)
        return pretended_layer_times(*args, **kwargs)

    monkeypatch.setattr("pelacli.measure.layer_times.measure", measure)
    return calls


def test_a_layer_that_no_rank_makes_faster_stays_dense(pela, here, timed):
    """Of the pretended times: a layer with as many outputs as inputs is slower at any rank."""
    result = document(pela(*VIT, "--ratio", "0.9", "--json"))
    layers = {layer["name"]: layer for layer in result["layers"]}
    assert layers["blocks.0.attn.proj"]["reason"] == "no rank is faster than dense"
    ranks = [la["rank"] for la in result["layers"] if la["shape"] in ([256, 64], [64, 256])]
    assert any(rank is not None for rank in ranks)
    assert result["unit"] == "latency"


def test_prediction_and_measurement_stand_side_by_side(pela, here, timed):
    code, out, err = pela(*VIT, "--ratio", "0.9", "--batch-size", "4", "--json")
    assert code == 0
    latency = json.loads(out)["latency_ms"]
    assert (latency["dense"], latency["measured"]) == (40, 32)  # as `LowRankTakesLonger` has it
    assert latency["planned_dense"] == 40
    assert latency["predicted"] <= 0.9 * 40
    assert (latency["batch_size"], latency["device"], latency["precision"]) == (4, "cpu", "fp32")
    assert not latency["compile"]
    [step] = json.loads((here / "v" / "pela.json").read_text())["history"]
    assert figures(step["metrics"]["latency_ms"]) == latency
    assert "a batch of 4 on cpu in fp32: predicted " in err
    assert ", measured 32 ms (0.80 of dense, 40 ms)" in err


def test_what_is_slower_when_measured_is_said(pela, here, timed):
    err = pela(*VIT, "--ratio", "0.9", "--batch-size", "1")[2]
    assert "measured 17 ms (1.70 of dense, 10 ms); it is slower than dense here" in err


def test_a_dry_run_predicts_and_makes_no_model(pela, here, timed):
    latency = document(pela(*VIT, "--ratio", "0.9", "--dry-run", "--json"))["latency_ms"]
    assert latency["measured"] is None
    assert latency["predicted"] < latency["dense"] == 80
    assert not (here / "v").exists()


def test_layers_of_one_shape_are_timed_once_and_never_again(pela, here, timed):
    assert pela(*VIT, "--ratio", "0.9", "--dry-run")[0] == 0
    cases = [call[0] for call in timed]
    assert len(cases) == len(set(cases)) == 4  # qkv, proj, fc1, fc2
    assert {case.tokens for case in cases} == {8 * 5}
    assert pela(*VIT, "--ratio", "0.8", "--dry-run")[0] == 0
    assert len(timed) == 4
    assert pela(*VIT, "--ratio", "0.9", "--dry-run", "--batch-size", "2")[0] == 0
    assert pela(*VIT, "--ratio", "0.9", "--dry-run", "--precision", "bf16")[0] == 0
    assert len(timed) == 12


def test_a_ratio_that_no_plan_reaches_names_the_smallest(refused, here, timed):
    line = refused(*VIT, "--ratio", "0.1")
    assert "ratio 0.1 cannot be met: the smallest possible is 0." in line
    assert "of the time" in line


def test_the_weights_are_those_of_a_plan_with_the_same_ranks(pela, here, timed):
    """Timing in another precision leaves the model as it was."""
    assert pela(*VIT, "--ratio", "0.9", "--precision", "bf16")[0] == 0
    layers = json.loads((here / "v" / "pela.json").read_text())["layers"]
    (here / "plan.json").write_text(json.dumps({"layers": layers}))
    again = [*VIT[:-2], "--plan", "plan.json"]
    again[again.index("v")] = "w"
    assert pela(*again)[0] == 0
    first, second = ((here / name / "model.safetensors").read_bytes() for name in "vw")
    assert first == second


def test_language_models_are_planned_by_time_too(pela, here, timed):
    model = save_model("llama", "CausalLM", here / "m")
    ask = ("decompose", model, "--unit", "latency", "--ratio", "0.97", "-o", "v")
    result = document(pela(*ask, "--json"))
    assert result["latency_ms"]["predicted"] <= 0.97 * 80
    assert pela("report", "v")[0] == 0


def test_a_language_model_is_calibrated_for_a_plan_by_time(pela, here, timed):
    model = save_model("llama", "CausalLM", here / "m")
    (here / "t.txt").write_text("\n".join("w1 k2 w3 . k4 w5 k6 w7" for _ in range(24)))
    how = ("--precision", "bf16", "--batch-size", "3", "--calibrate", "t.txt",
           "--samples", "16")  # fmt: skip
    ask = ("decompose", model, "--unit", "latency", "--ratio", "0.97", "-o", "v", *how)
    result = document(pela(*ask, "--json"))
    latency = result["latency_ms"]
    assert (latency["batch_size"], latency["precision"]) == (3, "bf16")
    assert result["samples"] == 16
    reasons = {layer["reason"] for layer in result["layers"]}
    assert "no rank is faster than dense" in reasons
    assert "break-even" not in reasons


def test_a_recipe_has_the_same_keys(pela, here, timed):
    (here / "r.toml").write_text(
        'model = "vit_tiny_patch16_224"\nweights = "random"\noutput = "out"\n'
        "model_args = { img_size = 16, patch_size = 8, embed_dim = 64, depth = 2, num_heads = 2 }\n"
        '[decompose]\nratio = "0.9"\nunit = "latency"\n'
        "[decompose.latency]\nbatch_size = 3\nprecision = 'bf16'\n"
    )
    latency = document(pela("decompose", "r.toml", "--dry-run", "--json"))["latency_ms"]
    assert (latency["batch_size"], latency["precision"]) == (3, "bf16")
    flags = ("--batch-size", "5")
    latency = document(pela("decompose", "r.toml", "--dry-run", "--json", *flags))["latency_ms"]
    assert (latency["batch_size"], latency["precision"]) == (5, "bf16")


def test_spectra_of_such_an_artefact_can_be_planned_from_in_parameters(pela, here, timed):
    assert pela(*VIT, "--ratio", "0.9")[0] == 0
    again = document(pela("decompose", "v", "--ratio", "0.7", "--dry-run", "--json"))
    assert again["unit"] == "params"
    assert pela("report", "v", "--sweep", "0.9,0.8")[0] == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--policy", "uniform"), "'latency' belongs to policy 'energy', not to 'uniform'"),
        (("--threshold", "0.9"), "'latency' belongs to policy 'energy', not to 'threshold'"),
        (("--precision", "int8"), "--precision"),
        (("--batch-size", "0"), "--batch-size"),
        (("--device", "nonesuch"), "nonesuch"),
    ],
)
def test_what_does_not_go_with_time_is_refused(refused, here, timed, flags, says):
    ratio = () if "--threshold" in flags else ("--ratio", "0.9")
    assert says in refused(*VIT, *ratio, *flags)
    assert not timed


@pytest.mark.parametrize("flags", [("--batch-size", "4"), ("--precision", "bf16"), ("--compile",)])
def test_flags_of_timing_need_the_unit(refused, here, timed, flags):
    line = refused(*VIT[:-2], "--ratio", "0.9", *flags)
    assert f"{' '.join(flags)}: is about --unit latency; give that too" in line


def test_spectra_alone_can_not_be_timed(pela, refused, here, timed):
    assert pela(*VIT[:-2], "--ratio", "0.9")[0] == 0
    line = refused("decompose", "v", "--ratio", "0.7", "--unit", "latency", "--dry-run")
    assert "no model that could be timed" in line
