"""A budget in points of the main metric: the smallest model that loses few enough."""

from __future__ import annotations

import copy
import json

import generated_text
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

import pelacli
from pelacli.console import figures
from pelacli.data.dataset import open_dataset
from pelacli.data.loader import loader
from pelacli.errors import RequestError
from pelacli.lowrank import replace
from pelacli.manifest import document as manifest_document
from pelacli.measure.agreement import agreement
from pelacli.measure.evaluation import open_data
from pelacli.measure.judge import Judge
from pelacli.models import heads, opening, prediction, wrapping
from pelacli.recipe.data import Data
from pelacli.recipe.schema import Recipe
from pelacli.recipe.step import step_of
from pelacli.steps import decompose

ARGS = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 2, "in_chans": 1}
DIGITS = (
    'model = "vit_tiny_patch16_224"\nweights = "fit.safetensors"\noutput = "runs/digits"\n'
    f"model_args = {{ {', '.join(f'{k} = {v}' for k, v in ARGS.items())} }}\nnum_classes = 10\n"
)
DATA = '[data]\ndataset = "digits"\n'
CPU = torch.device("cpu")


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
        features = model.forward_head(model.forward_features(batch["inputs"]), pre_logits=True)
        features = torch.cat([features, torch.ones(len(features), 1)], 1)
        targets = torch.nn.functional.one_hot(batch["labels"], 10).float()
        head = torch.linalg.lstsq(features, targets).solution
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
        assert row["drop"] == pytest.approx(dense["score"] - row["score"], abs=1e-3)
        assert row["accepted"] == (row["drop"] <= 5)
        assert row["damage"] > 0
        assert 0 < row["energy"] < 1
        assert figures(row["params"] / dense["params"]) == row["ratio"] <= float(row["asked"])
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
    assert figures(last.metrics["curve"]) == done["curve"]
    assert (last.metrics["max_drop"], figures(last.metrics["drop"])) == (5, done["drop"])
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
    tried = document(pela("decompose", digits, *how, "--json"), code=3)
    assert tried["artefact"] is None
    assert tried["drop"] is None
    assert not any(row["accepted"] for row in tried["curve"][1:])
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
    assert all(row["drop"] == pytest.approx(100 - row["score"], abs=1e-3) for row in done["curve"])
    assert {round(row["score"] * 0.4, 6) % 1 for row in done["curve"]} == {0.0}  # of 40 images
    assert done["drop"] <= 10


def test_without_classes_the_cosine_counts(images):
    torch.manual_seed(0)
    opened = wrapping.wrap(timm.create_model("vit_tiny_patch16_224", num_classes=0, **ARGS).eval())
    data = Data(dataset=images, batch_size=16)  # three batches, the last one smaller
    data = open_data(opened, data, "unlabelled")
    judge = Judge(opened, data, CPU)
    assert judge.metric == "cosine"
    assert judge.score() == 100
    assert judge.score() == pytest.approx(100)
    samples = torch.cat([batch["inputs"] for batch in data.samples])
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
    data = open_data(opened, Data(dataset=dataset, batch_size=2), "unlabelled")
    judge = Judge(opened, data, CPU)
    assert judge.metric == metric
    assert judge.score() == 100
    dense = copy.deepcopy(opened.module)
    with torch.no_grad():
        for parameter in opened.module.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.abs().mean() * 3)
    agreed = agreement(
        opened.module, dense, data.samples, prediction.predict,
        classes=heads.num_classes(opened) is not None,
    )  # fmt: skip
    assert ("same_class" in agreed) == (metric == "same_class")
    score = judge.score()
    assert score == pytest.approx(agreed[metric] * (1 if metric == "same_class" else 100))
    assert score < 100
    assert judge.metric == metric


def test_one_number_a_sample_has_no_class_to_agree_on(here):
    """A model of scores has one output, which is always the largest."""
    generated_text.save_model("bert", "SequenceClassification", here / "m", num_labels=1)
    opened = opening.open(str(here / "m"))
    (here / "texts.txt").write_text("w1 w2 k3\nw4\nk5 w6\n")
    data = Data(dataset=str(here / "texts.txt"), batch_size=2)
    with pytest.raises(RequestError, match=r"--max-drop: .* gives one number a sample"):
        Judge(opened, open_data(opened, data, "unlabelled"), CPU)
    other = copy.deepcopy(opened.module)
    texts = open_dataset(data.dataset, "train", inputs=opened.inputs)
    agreed = agreement(
        other, opened.module, loader(texts, batch_size=2), prediction.predict, classes=True
    )
    assert agreed.keys() == {"relative_error"}  # nor a direction


@pytest.mark.parametrize("correct", [False, True])
def test_trials_leave_the_dense_model_as_it_was(digits, inputs, correct, monkeypatch):
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
    parameters = []
    original = replace.replaced

    def replaced(module, factors):
        parameters.append({n: id(p) for n, p in module.named_parameters()})
        return original(module, factors)

    monkeypatch.setattr(replace, "replaced", replaced)
    done = decompose.run(step_of(spec, "decompose"))
    assert len(parameters) == len(done.search.curve) - 1 >= 2
    assert all(ids == parameters[0] for ids in parameters)  # the same tensors at each
    written = accuracy(pelacli.load(done.path), inputs)
    assert done.search.curve[0]["score"] - written == pytest.approx(done.search.drop, abs=0.3)


@pytest.mark.slow
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
    done = document(pela("decompose", "r.toml", *drop, *how))
    assert done["drop"] <= 30
    (here / "q.toml").write_text(DIGITS + DATA + "[decompose]\nmax_drop = 1.0\n")
    assert document(pela("decompose", "q.toml", "--ratio", "0.8", *how))["requested"] == "0.8"
