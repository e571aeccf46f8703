"""Budgets in FLOPs, in energy and in points of the main metric, from the command line on down."""

from __future__ import annotations

import copy
import json
from fractions import Fraction

import generated_text
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pelacli
from pelacli.artefact import description
from pelacli.data.dataset import open_dataset
from pelacli.data.loader import loader
from pelacli.errors import RequestError
from pelacli.lowrank import find, replace
from pelacli.manifest import document as manifest_document
from pelacli.measure.agreement import agreement
from pelacli.measure.judge import Judge
from pelacli.models import heads, opening, prediction, wrapping
from pelacli.planning import stored
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget
from pelacli.recipe.schema import Data, Recipe
from pelacli.recipe.step import step_of
from pelacli.steps import decompose

SWIN = (
    'model = "swin_tiny_patch4_window7_224"\nweights = "random"\noutput = "runs/swin"\n'
    "model_args = { img_size = 56, embed_dim = 16, depths = [1, 1, 2, 1], num_heads = [1, 2, 4, 8],"
    " window_size = 7 }\nnum_classes = 10\n"
)
ARGS = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 2, "in_chans": 1}
DIGITS = (
    'model = "vit_tiny_patch16_224"\nweights = "fit.safetensors"\noutput = "runs/digits"\n'
    f"model_args = {{ {', '.join(f'{k} = {v}' for k, v in ARGS.items())} }}\nnum_classes = 10\n"
)
DATA = '[data]\ndataset = "digits"\n'


@pytest.fixture
def swin(here):
    (here / "swin.toml").write_text(SWIN)
    return "swin.toml"


@pytest.fixture(scope="session")
def inputs():
    """What pela gives such a network of an image."""
    how = {"weights": "random", "model_args": ARGS, "num_classes": 10}
    return opening.open("vit_tiny_patch16_224", **how).inputs


@pytest.fixture(scope="session")
def fit(inputs):
    """A network with random layers and a head fitted to the digits by least squares."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **ARGS).eval()
    (batch,) = loader(open_dataset("digits", "train", inputs=inputs), batch_size=2_000)
    with torch.no_grad():
        for block in model.blocks:  # from nearly none to an influence of their own
            for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                layer.weight.mul_(6)
        seen = model.forward_head(model.forward_features(batch["inputs"]), pre_logits=True)
        seen = torch.cat([seen, torch.ones(len(seen), 1)], 1)
        wanted = torch.nn.functional.one_hot(batch["labels"], 10).float()
        head = torch.linalg.lstsq(seen, wanted).solution
        model.head.weight.copy_(head[:-1].T)
        model.head.bias.copy_(head[-1])
    return model


@pytest.fixture
def digits(here, fit):
    save_file(fit.state_dict(), "fit.safetensors")
    (here / "digits.toml").write_text(DIGITS)
    return "digits.toml"


def accuracy(module, inputs):
    (batch,) = loader(open_dataset("digits", "validation", inputs=inputs), batch_size=2_000)
    with torch.no_grad():
        return 100 * float((module(batch["inputs"]).argmax(1) == batch["labels"]).float().mean())


def document(answer, code=0):
    assert answer[0] == code, answer[2]
    return json.loads(answer[1])


# --- FLOPs ---------------------------------------------------------------------------------------


def test_a_swins_flops_are_spent_in_another_way_than_its_parameters(pela, swin, here):
    """Of equal FLOPs the FLOP plan keeps more energy; of equal parameters the other one."""
    pela("decompose", swin, "--ratio", "0.5", "--dry-run", "--spectra", "s")
    layers = stored.load(here / "s").layers
    assert {s.tokens for s in layers} == {14.0**2, 7.0**2, 4.0**2, 2.0**2}  # a patch is 4 × 4

    def price(s, unit):
        return 1 if unit == "params" else 2 * int(s.tokens)

    def spent(plan, unit):
        ranks = plan.ranks()
        out_in = {s.name: (s.shape[0] * s.shape[1], sum(s.shape)) for s in layers}
        return sum(
            price(s, unit)
            * (ranks[s.name] * out_in[s.name][1] if s.name in ranks else out_in[s.name][0])
            for s in layers
        )

    def best(unit, budget):
        ratio = Fraction(budget, sum(price(s, unit) * s.shape[0] * s.shape[1] for s in layers))
        return planner.plan(layers, Budget("energy", ratio, scope="layers", unit=unit))

    whole = sum(s.shape[0] * s.shape[1] for s in layers)
    by_params = best("params", whole // 2)
    by_flops = best("flops", spent(by_params, "flops"))
    assert by_flops.ranks() != by_params.ranks()
    assert spent(by_flops, "flops") <= spent(by_params, "flops")
    assert by_flops.energy > by_params.energy
    again = best("params", spent(by_flops, "params"))
    assert spent(again, "params") <= spent(by_flops, "params")
    assert again.energy > by_flops.energy


def test_a_flop_budget_of_the_whole_model_is_met(pela, swin, here):
    done = document(pela("decompose", swin, "--ratio", "0.6", "--unit", "flops", "--json"))
    assert done["unit"] == "flops"
    assert done["requested"] == "0.6"
    assert done["flops_ratio"] == done["flops"]["after"] / done["flops"]["before"]
    assert 0.59 <= done["flops_ratio"] <= 0.6
    assert manifest_document.read(here / done["artefact"]).unit == "flops"
    # What was promised is what torch counts in the model that was made.
    module = pelacli.load(here / done["artefact"])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, 3, 56, 56))
    assert counter.get_total_flops() == done["flops"]["after"]


def test_calibration_does_not_change_what_a_flop_is(pela, swin, here):
    generator = torch.Generator().manual_seed(0)
    (here / "images").mkdir()
    for n in range(4):
        pixels = torch.randint(0, 255, (56, 56, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(here / "images" / f"{n}.png")
    how = ("--ratio", "0.6", "--unit", "flops", "--dry-run", "--json")
    plain = document(pela("decompose", swin, *how))
    seen = document(pela("decompose", swin, *how, "--calibrate", "images"))
    assert seen["calibrated"]
    assert seen["flops"]["before"] == plain["flops"]["before"]
    assert 0.59 <= seen["flops_ratio"] <= 0.6


def test_a_flop_budget_names_the_artefact(pela, here):
    done = document(
        pela(
            "decompose", "test_vit", "--weights", "random", "--ratio", "2/3", "--unit", "flops",
            "--json",
        )
    )  # fmt: skip
    assert done["artefact"] == "runs/test_vit-f0.67"
    assert "ratio 2/3" not in pela("report", "runs/test_vit-f0.67")[1]


def test_an_impossible_flop_budget_speaks_of_flops(pela, swin):
    code, out, err = pela("decompose", swin, "--ratio", "0.01", "--unit", "flops")
    assert (code, out) == (2, "")
    assert "of the FLOPs" in err
    assert "what is no linear layer" in err
    smallest = err.split("smallest possible is ")[1].split(",")[0]
    how = (swin, "--unit", "flops", "--dry-run", "--json")
    assert document(pela("decompose", *how, "--ratio", smallest))
    assert pela("decompose", *how, "--ratio", str(float(smallest) - 1e-4))[0] == 2


def test_unknown_flops_are_refused(pela, digits, here, monkeypatch):
    monkeypatch.setattr(description, "cost", lambda opened, layers: None)
    code, out, err = pela("decompose", digits, "--ratio", "0.5", "--unit", "flops")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "its FLOPs are unknown" in err
    assert "--unit params" in err
    assert not (here / "runs").exists()


def test_stored_spectra_know_their_flops(pela, swin, here):
    how = ("--ratio", "0.6", "--unit", "flops", "--dry-run", "--json")
    first = document(pela("decompose", swin, *how, "--spectra", "s"))
    again = document(pela("decompose", "s", *how))
    assert again["layers"] == first["layers"]
    assert again["flops"] == first["flops"]
    code, _, err = pela("decompose", "s", "--ratio", "0.01", "--unit", "flops", "--dry-run")
    assert code == 2
    assert "what is no linear layer" in err


class TwoRates(nn.Module):
    """A wide layer that is applied to every token, and one of the same shape applied once."""

    def __init__(self):
        super().__init__()
        self.often, self.once = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        return self.once(self.often(x).mean(1))


def test_api_plans_flops_of_any_module_by_its_batches():
    torch.manual_seed(0)
    model = TwoRates()
    batches = [torch.randn(4, 16, 32), torch.randn(2, 16, 32)]
    plan = pelacli.plan(model, ratio=0.5, unit="flops", scope="layers", batches=iter(batches))
    assert plan.unit == "flops"
    assert plan.total == 2 * 17 * 32 * 32
    assert plan.used <= plan.total / 2
    ranks = {name: plan.ranks().get(name, 16) for name in ("often", "once")}
    assert 2 * 64 * (16 * ranks["often"] + ranks["once"]) == plan.used
    by_params = pelacli.plan(model, ratio=0.5, scope="layers", batches=batches)
    assert by_params.total == 2 * 32 * 32
    assert by_params.ranks()["often"] > ranks["often"]
    with pytest.raises(RequestError, match="its FLOPs are unknown; give batches"):
        pelacli.plan(model, ratio=0.5, unit="flops")


def test_api_keeps_a_share_of_the_energy():
    torch.manual_seed(0)
    model = TwoRates()
    plan = pelacli.decompose(model, energy=0.9)
    assert plan.energy >= 0.9
    assert plan.share == 0.9
    assert {n: m.rank for n, m in find.low_rank_layers(model).items()} == plan.ranks()


# --- energy --------------------------------------------------------------------------------------


def test_energy_is_kept_at_the_least_cost(pela, here):
    how = ("decompose", "test_vit", "--weights", "random", "--json")
    done = document(pela(*how, "--energy", "0.8"))
    assert done["artefact"] == "runs/test_vit-e0.8"
    assert done["energy"] >= 0.8
    assert done["requested"] is None
    smaller = f"{done['ratio'] - 1e-4:.6f}"
    assert document(pela(*how, "--ratio", smaller, "--dry-run"))["energy"] < 0.8
    more = document(pela(*how, "--energy", "0.8", "--unit", "flops", "--dry-run"))
    assert more["energy"] >= 0.8
    assert more["flops"]["after"] <= done["flops"]["after"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--energy", "0.9", "--ratio", "0.5"), "--energy: energy and ratio both say how small"),
        (("--energy", "0.9", "--policy", "uniform"), "--energy: belongs to policy 'energy'"),
        (("--energy", "1.5"), "--energy: 1.5 is out of range; at most 1"),
        (("--max-drop", "1", "--data", "digits", "--ratio", "0.5"), "max_drop and ratio both"),
        (("--max-drop", "1", "--data", "digits", "--threshold", "0.5"), "max_drop and threshold"),
        (("--max-drop", "1", "--data", "digits", "--energy", "0.5"), "max_drop and energy both"),
        (("--max-drop", "1", "--data", "digits", "--plan", "p"), "max_drop and plan both"),
        (("--max-drop", "-1", "--data", "digits"), "--max-drop: -1.0 is out of range; at least 0"),
        (("--max-drop", "1"), "--max-drop: needs samples to measure on; give --data"),
        (("--ratio", "0.5", "--data", "digits"), "--data: is what max_drop measures on"),
        (("--ratio", "0.5", "--split", "test"), "--split: is what max_drop measures on"),
        (("--ratio", "0.5", "--unit", "bytes"), "--unit: 'bytes' is none of params, flops"),
        (("--unit", "flops"), "decompose needs --ratio"),
    ],
)
def test_budgets_that_clash(pela, here, flags, says):
    code, out, err = pela("decompose", "test_vit", "--weights", "random", *flags)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert says in err
    assert list(here.iterdir()) == []


# --- quality -------------------------------------------------------------------------------------


def test_a_quality_budget_finds_the_smallest_model_that_keeps_it(pela, digits, here, inputs):
    done = document(
        pela(
            "decompose", digits, "--max-drop", "5", "--data", "digits", "--calibrate", "digits",
            "--samples", "64", "-o", "small", "--json",
        )
    )  # fmt: skip
    dense, *tried = done["curve"]
    assert done["metric"] == "accuracy"
    assert done["max_drop"] == 5
    assert (dense["ratio"], dense["drop"], dense["energy"], dense["asked"]) == (1.0, 0.0, 1.0, None)
    assert 1 <= len(tried) <= 7
    for row in tried:
        assert row["drop"] == pytest.approx(dense["score"] - row["score"])
        assert row["accepted"] == (row["drop"] <= 5)
        assert row["damage"] > 0
        assert 0 < row["energy"] < 1
        assert row["params"] / dense["params"] == row["ratio"] <= float(row["asked"])
        assert row["flops"] < dense["flops"]
    kept = [row for row in tried if row["accepted"]]
    assert done["ratio"] == min(row["ratio"] for row in kept) < 1
    refused = [float(row["asked"]) for row in tried if not row["accepted"]]
    below = max([ratio for ratio in refused if ratio < done["ratio"]])
    assert done["ratio"] - below <= 0.01
    # What was written is what was measured.
    written = accuracy(pelacli.load(here / "small"), inputs)
    assert dense["score"] - written == pytest.approx(done["drop"], abs=0.3)  # a sample is 0.28
    last = manifest_document.read(here / "small").history[-1]
    assert last.metrics["curve"] == done["curve"]
    assert (last.metrics["max_drop"], last.metrics["drop"]) == (5, done["drop"])
    # The ratio that was found is one that --ratio takes.
    how = ("--calibrate", "digits", "--samples", "64", "--dry-run", "--json")
    again = document(pela("decompose", digits, "--ratio", done["requested"], *how))
    assert [la["rank"] for la in again["layers"]] == [la["rank"] for la in done["layers"]]


def test_the_curve_is_a_table_for_people(pela, digits, here):
    calibrate = ("--calibrate", "digits", "--samples", "64")
    how = ("--max-drop", "20", "--data", "digits", *calibrate, "--dry-run")
    code, out, err = pela("decompose", digits, *how)
    assert code == 0, err
    lines = out.splitlines()
    header = next(line for line in lines if "accepted" in line)
    assert header.split()[:2] == ["ratio", "parameters"]
    assert "accuracy" in header
    assert any(line.split()[:1] == ["dense"] for line in lines)
    assert "drop of accuracy" in out
    assert not (here / "runs").exists()


def test_a_quality_budget_that_nothing_meets(pela, digits, here):
    """Wide layers pinned to one rank: what is left to choose can't make up for it."""
    how = ("--max-drop", "0.5", "--data", "digits", "--pin", "mlp=1")
    code, out, err = pela("decompose", digits, *how)
    assert code == 3
    assert "no factorised model keeps accuracy within 0.5 points" in err
    assert "the best of" in err
    assert "--calibrate" in err
    assert err.count("\n") == 1
    assert "accepted" in out
    told = document(pela("decompose", digits, *how, "--json"), code=3)
    assert told["artefact"] is None
    assert told["drop"] is None
    assert not any(row["accepted"] for row in told["curve"][1:])
    assert not (here / "runs").exists()


@pytest.fixture
def images(here):
    (here / "images").mkdir()
    generator = torch.Generator().manual_seed(0)
    for n in range(40):
        pixels = torch.randint(0, 255, (16, 16), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(here / "images" / f"{n:02}.png")
    return "images"


def test_without_labels_the_agreement_counts(pela, digits, images):
    how = ("--max-drop", "10", "--data", images, "--task", "unlabelled", "--calibrate", images)
    done = document(pela("decompose", digits, *how, "--dry-run", "--json"))
    assert done["metric"] == "same_class"
    assert done["curve"][0]["score"] == 100
    assert all(row["drop"] == 100 - row["score"] for row in done["curve"])
    assert {round(row["score"] * 0.4, 6) % 1 for row in done["curve"]} == {0.0}  # of 40 images
    assert done["drop"] <= 10


def test_without_classes_the_cosine_counts(images):
    torch.manual_seed(0)
    opened = wrapping.wrap(timm.create_model("vit_tiny_patch16_224", num_classes=0, **ARGS).eval())
    data = Data(dataset=images, batch_size=16)  # three batches, the last one smaller
    judge = Judge(opened, data, "unlabelled", None, "cpu")
    assert judge.metric == "cosine"
    assert judge.score() == 100
    assert judge.score() == pytest.approx(100)
    samples = torch.cat([batch["inputs"] for batch in judge.samples])
    with torch.no_grad():
        before = opened.module(samples)
        opened.module.blocks[0].mlp.fc1.weight.mul_(30)
        after = opened.module(samples)
    cosines = (before * after).sum(1) / (before.norm(dim=1) * after.norm(dim=1))
    assert judge.score() == pytest.approx(100 * float(cosines.mean()), abs=1e-4)
    assert float(cosines.mean()) < 0.999


def detector():
    """A tiny YOLOS with classes, whose output is one vector for each of its queries."""
    config = transformers.YolosConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        image_size=[16, 16], patch_size=4, num_detection_tokens=3, num_labels=5,
        use_mid_position_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.YolosForObjectDetection(config).eval()


def segmenter():
    """A tiny SegFormer, whose output is a map of classes."""
    config = transformers.SegformerConfig(
        num_encoder_blocks=1, depths=[1], sr_ratios=[1], hidden_sizes=[16], patch_sizes=[7],
        strides=[4], num_attention_heads=[2], mlp_ratios=[2], decoder_hidden_size=16, num_labels=5,
        image_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.SegformerForSemanticSegmentation(config).eval()


def test_a_detectors_budget_without_labels_is_one_of_cosines_everywhere(pela, here, images):
    detector().save_pretrained(here / "detector")
    how = ("--max-drop", "20", "--data", images, "--task", "unlabelled", "--calibrate", images)
    code, out, err = pela("decompose", "detector", *how, "-o", "small")
    assert code == 0, err
    assert "cosine" in out.splitlines()[0] + out.splitlines()[1]  # the table's heading
    assert "same_class" not in out + err
    written = manifest_document.read(here / "small").history[-1].metrics
    assert written["metric"] == "cosine"
    done = document(pela("decompose", "detector", *how, "--dry-run", "--json"))
    assert done["metric"] == "cosine"
    assert done["curve"][0]["score"] == 100
    assert all(0 < row["score"] < 100 for row in done["curve"][1:])
    code, out, err = pela("decompose", "detector", *how, "--max-drop", "0", "--json")
    assert code == 3, err
    assert "keeps cosine within 0 points" in err
    assert json.loads(out)["metric"] == "cosine"


@pytest.mark.parametrize(
    ("made", "metric"),
    [
        (detector, "cosine"),
        (segmenter, "same_class"),
        ("TokenClassification", "same_class"),
        ("MaskedLM", "same_class"),
        ("SequenceClassification", "same_class"),
        ("", "cosine"),
    ],
    ids=["detector", "segmenter", "tokens", "words", "texts", "encoder"],
)
def test_the_figure_is_named_before_the_first_score_and_keeps_its_name(here, images, made, metric):
    if callable(made):
        opened, dataset = wrapping.wrap(made()), images
    else:
        generated_text.save_model("bert", made, here / "m", num_labels=3)
        opened, dataset = opening.open(str(here / "m")), str(here / "texts.txt")
        texts = [row["text"] for row in generated_text.labelled(20, 0)]
        (here / "texts.txt").write_text("\n".join(texts))
    judge = Judge(opened, Data(dataset=dataset, batch_size=2), "unlabelled", None, "cpu")
    assert judge.metric == metric
    assert judge.score() == 100
    dense = copy.deepcopy(opened.module)
    with torch.no_grad():
        for parameter in opened.module.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.abs().mean() * 3)
    found = agreement(
        opened.module, dense, judge.samples, prediction.predict,
        classes=heads.num_classes(opened) is not None,
    )  # fmt: skip
    assert ("same_class" in found) == (metric == "same_class")
    score = judge.score()
    assert score == pytest.approx(found[metric] * (1 if metric == "same_class" else 100))
    assert score < 100
    assert judge.metric == metric


def test_one_number_a_sample_has_no_class_to_agree_on(here):
    """A model of scores has one output, which is always the largest."""
    generated_text.save_model("bert", "SequenceClassification", here / "m", num_labels=1)
    opened = opening.open(str(here / "m"))
    (here / "texts.txt").write_text("w1 w2 k3\nw4\nk5 w6\n")
    data = Data(dataset=str(here / "texts.txt"), batch_size=2)
    with pytest.raises(RequestError, match=r"--max-drop: .* gives one number a sample"):
        Judge(opened, data, "unlabelled", None, "cpu")
    other = copy.deepcopy(opened.module)
    texts = open_dataset(data.dataset, "train", inputs=opened.inputs)
    found = agreement(
        other, opened.module, loader(texts, batch_size=2), prediction.predict, classes=True
    )
    assert found.keys() == {"cosine", "relative_error"}


@pytest.mark.parametrize("correct", [False, True])
def test_trials_leave_the_dense_model_as_it_was(digits, here, inputs, correct):
    spec = Recipe.model_validate(
        {
            "model": "vit_tiny_patch16_224",
            "weights": "fit.safetensors",
            "model_args": ARGS,
            "num_classes": 10,
            "output": "runs/x",
            "data": {"dataset": "digits"},
            "decompose": {
                "max_drop": 8.0, "calibrate": "train", "samples": 32, "correct": correct,
            },
        }
    )  # fmt: skip
    seen = []
    spy = replace.replaced

    def replaced(module, factors):
        seen.append(copy.deepcopy({n: id(p) for n, p in module.named_parameters()}))
        return spy(module, factors)

    replace.replaced = replaced
    try:
        done = decompose.run(step_of(spec, "decompose"))
    finally:
        replace.replaced = spy
    assert len(seen) == len(done.walk.curve) - 1 >= 2
    assert all(one == seen[0] for one in seen)  # the same tensors before every trial
    written = accuracy(pelacli.load(done.path), inputs)
    assert done.walk.curve[0]["score"] - written == pytest.approx(done.walk.drop, abs=0.3)


def test_a_recipe_with_a_quality_budget_runs_and_is_skipped(pela, digits, here):
    text = DIGITS + DATA + '[decompose]\nmax_drop = 20.0\ncalibrate = "train"\nsamples = 64\n'
    (here / "r.toml").write_text(text)
    run = ("run", "r.toml", "--json")
    assert document(pela(*run))["steps"][0]["skipped"] is False
    metrics = manifest_document.read(here / "runs/digits/decompose").history[-1].metrics
    assert metrics["drop"] <= metrics["max_drop"] == 20
    assert document(pela(*run))["steps"][0]["skipped"] is True
    # Other data to measure on, another result.
    assert document(pela(*run, "--set", "data.val=train"))["steps"][0]["skipped"] is False
    (here / "r.toml").write_text(text.replace("20.0", "0.0") + "pin = { 'mlp' = 1 }\n")
    before = manifest_document.read(here / "runs/digits/decompose")
    code, _, err = pela("run", "r.toml")
    assert code == 3
    assert "no factorised model" in err
    assert manifest_document.read(here / "runs/digits/decompose") == before


def test_a_flag_takes_the_place_of_the_recipes_budget(pela, digits, here):
    (here / "r.toml").write_text(DIGITS + "[decompose]\nratio = 0.9\n")
    how = ("--dry-run", "--json")
    assert document(pela("decompose", "r.toml", "--energy", "0.7", *how))["energy"] < 0.75
    drop = ("--max-drop", "30", "--data", "digits", "--calibrate", "digits", "--samples", "64")
    found = document(pela("decompose", "r.toml", *drop, *how))
    assert found["drop"] <= 30
    (here / "q.toml").write_text(DIGITS + DATA + "[decompose]\nmax_drop = 1.0\n")
    assert document(pela("decompose", "q.toml", "--ratio", "0.8", *how))["requested"] == "0.8"
