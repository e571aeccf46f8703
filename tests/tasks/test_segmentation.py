"""Segmentation: the figures, the losses, and that a compressed model learns it again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from drawn_masks import write, write_kinds
from paper_recipes import RECIPES, cut

from pelacli.artefact import loading
from pelacli.errors import RequestError
from pelacli.lowrank import find
from pelacli.manifest import document as manifest_document
from pelacli.measure.agreement import agreement
from pelacli.measure.evaluation import measure, open_data
from pelacli.models import opening
from pelacli.recipe import reading, schema
from pelacli.recipe.schema import Recipe
from pelacli.recipe.step import step_of
from pelacli.steps import decompose, finetune, pretrain
from pelacli.tasks import registry
from pelacli.train import run

VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 2}
HEAD = {"channels": 16, "pool_scales": [1, 2], "auxiliary": 0.0}


def task(**args):
    return registry.get("segmentation", {"classes": 3, **args})


# Figures -----------------------------------------------------------------------------------------


def by_hand(pairs, classes, ignore):
    """miou, mean and pixel accuracy of (predicted, true) maps, counted pixel by pixel."""
    hit, said, true = np.zeros(classes), np.zeros(classes), np.zeros(classes)
    for predicted, labels in pairs:
        for p, t in zip(predicted.ravel(), labels.ravel(), strict=True):
            if t == ignore:
                continue
            hit[t] += p == t
            said[p] += 1
            true[t] += 1
    union = said + true - hit
    return {
        "miou": 100 * np.mean([hit[c] / union[c] for c in range(classes) if union[c]]),
        "mean_accuracy": 100 * np.mean([hit[c] / true[c] for c in range(classes) if true[c]]),
        "pixel_accuracy": 100 * hit.sum() / true.sum(),
    }


def test_figures_are_those_of_counting_pixels():
    """Several batches, masks of several sizes, pixels that don't count, a class that is missing
    from the masks and one that is nowhere."""
    rng, classes = np.random.default_rng(0), 6
    found, pairs = task(classes=classes).metrics(classes), []
    for batch_size, sides in [(2, [(8, 8), (6, 9)]), (1, [(12, 7)])]:
        height, width = max(s[0] for s in sides), max(s[1] for s in sides)
        masks = np.full((batch_size, height, width), 255)
        logits = rng.normal(size=(batch_size, classes, 4, 4))
        logits[:, 5] = -9.0  # nowhere
        for i, (h, w) in enumerate(sides):
            masks[i, :h, :w] = rng.integers(0, 4, (h, w))  # 4 is predicted only
            masks[i, :2, :2] = 255
            scaled = F.interpolate(torch.tensor(logits[i : i + 1]).float(), (h, w), mode="bilinear")
            pairs.append((scaled[0].argmax(0).numpy(), masks[i, :h, :w]))
        batch = {"masks": torch.tensor(masks), "sizes": torch.tensor(sides)}
        found.update({"logits": torch.tensor(logits)}, batch)
    got, want = found.compute(), by_hand(pairs, classes, 255)
    assert set(got) == set(want)
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-6), name
    assert 0 < want["miou"] < want["mean_accuracy"] < 60


def test_a_perfect_map_has_all_points():
    masks = torch.tensor([[[0, 1], [2, 255]]])
    logits = F.one_hot(masks.clamp(max=2), 3).permute(0, 3, 1, 2).float()
    found = task().metrics(3)
    found.update({"logits": logits}, {"masks": masks, "sizes": torch.tensor([[2, 2]])})
    assert found.compute() == {"miou": 100.0, "mean_accuracy": 100.0, "pixel_accuracy": 100.0}


# Losses ------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_the_pixels_that_count():
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 3, 2, 2), torch.randint(3, (2, 4, 4))
    masks[0, :2], masks[1, 3] = 7, 7
    output = {"logits": logits, "auxiliary": torch.randn(2, 3, 1, 1)}
    named = task(ignore_index=7, auxiliary=0.25).loss(output, {"masks": masks})

    def mean(one):
        scaled = F.interpolate(one, (4, 4), mode="bilinear", align_corners=False)
        odds = scaled.log_softmax(1)
        spots = [(b, i, j) for b in range(2) for i in range(4) for j in range(4)]
        counted = [spot for spot in spots if masks[spot] != 7]
        return -sum(odds[b, masks[b, i, j], i, j] for b, i, j in counted) / len(counted)

    assert torch.allclose(named["task"], mean(logits), atol=1e-6)
    assert torch.allclose(named["auxiliary"], 0.25 * mean(output["auxiliary"]), atol=1e-6)


def test_a_batch_in_which_nothing_counts_is_no_nan():
    logits = torch.randn(2, 3, 2, 2, requires_grad=True)
    named = task().loss({"logits": logits}, {"masks": torch.full((2, 4, 4), 255)})
    named["task"].backward()
    assert float(named["task"].detach()) == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_a_map_agrees_pixel_by_pixel():
    one, other = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    one[:, 1], other[:, 1] = 1.0, 1.0
    other[0, 2, 0, :] = 2.0  # two of eight pixels
    pairs = iter([one, other])
    found = agreement(
        None, None, [{"inputs": torch.zeros(2)}], lambda *_: next(pairs), classes=True
    )  # fmt: skip
    assert found["same_class"] == 75.0


# Learning ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("shapes"), {"training": 96, "validation": 32})


def spec_of(shapes: Path, output: Path, **changed) -> Recipe:
    document = {
        "model": "vit_tiny_patch16_224",
        "weights": "random",
        "model_args": VIT,
        "output": str(output),
        "device": "cpu",
        "task": "segmentation",
        "task_args": HEAD,
        "data": {"dataset": str(shapes), "batch_size": 16, "augment": {"none": True}},
    }
    return Recipe.model_validate(document | changed)


def score(spec: Recipe, path: Path) -> dict[str, float]:
    opened = loading.load(path).opened
    task, settings = schema.task_of(spec, spec.finetune)
    data = open_data(opened, spec.finetune.data or spec.data, task, settings)
    return measure(opened, data, torch.device("cpu"))


@pytest.fixture(scope="module")
def healed(shapes, tmp_path_factory):
    """A dense segmenter, cut down by the paper's plain SVD, healed without labels, fine-tuned."""
    output = tmp_path_factory.mktemp("runs") / "shapes"
    spec = spec_of(
        shapes,
        output,
        teacher={"epochs": 20, "lr": 4e-3, "warmup_epochs": 1, "eval_every": 100},
        decompose={"ratio": "0.06", "scope": "layers", "policy": "uniform"},
        pretrain={"epochs": 6, "lr": 2e-3, "labels": False, "eval_every": 100},
        finetune={"epochs": 3, "lr": 2e-3, "eval_every": 100},
    )
    finetune.run(step_of(spec, "teacher"))
    decompose.run(step_of(spec, "decompose"))
    pretrain.run(step_of(spec, "pretrain"))
    finetune.run(step_of(spec, "finetune"))
    return spec, output


@pytest.mark.slow
def test_a_compressed_segmenter_learns_it_again(healed):
    """Measured: miou 80.3 dense, 69.6 decomposed, 79.9 healed without labels, 80.3 fine-tuned."""
    spec, output = healed
    steps = ("dense", "decompose", "pretrain", "finetune")
    miou = {step: score(spec, output / step)["miou"] for step in steps}
    assert miou["dense"] > 70
    assert miou["decompose"] < miou["dense"] - 5
    assert miou["pretrain"] > miou["dense"] - 3
    assert miou["finetune"] > miou["dense"] - 3
    sizes = {step: manifest_document.read(output / step).params.after for step in steps}
    assert sizes["decompose"] == sizes["pretrain"] == sizes["finetune"] < 0.55 * sizes["dense"]
    low = find.low_rank_layers(loading.load(output / "finetune").module)
    assert len(low) == 16


@pytest.mark.slow
def test_eval_and_report_give_the_segmenter_s_figures(healed, shapes, pela):
    spec, output = healed
    against = ("--against", output / "dense", "--max-drop", 30, "--json")
    code, out, err = pela("eval", output / "finetune", *against)
    assert code == 0, err
    [found] = json.loads(out)
    want = score(spec, output / "finetune")
    assert found["metrics"] == pytest.approx(want)
    drop = found["baseline"]["metrics"]["miou"] - want["miou"]
    assert found["drop"] == pytest.approx(drop, abs=1e-4)  # of rounded figures
    assert found["agreement"]["same_class"] > 90
    code, out, err = pela("report", output / "finetune", "--json")
    assert code == 0, err
    [row] = json.loads(out)
    assert row["params"]["after"] == manifest_document.read(output / "finetune").params.after


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    """A compressed classifier of single shapes."""
    folder = tmp_path_factory.mktemp("classifier")
    kinds = write_kinds(folder / "kinds", {"train": 96, "validation": 24})
    spec = Recipe.model_validate(
        {
            "model": "vit_tiny_patch16_224",
            "weights": "random",
            "model_args": VIT,
            "num_classes": 3,
            "output": str(folder / "run"),
            "device": "cpu",
            "data": {"dataset": str(kinds), "batch_size": 16, "augment": {"none": True}},
            "teacher": {"epochs": 12, "lr": 3e-3, "warmup_epochs": 1, "eval_every": 100},
            "decompose": {"ratio": "0.5", "scope": "layers"},
        }
    )
    finetune.run(step_of(spec, "teacher"))
    decompose.run(step_of(spec, "decompose"))
    return folder / "run/decompose"


def test_a_compressed_classifier_becomes_a_segmenter(classifier, shapes, tmp_path, pela):
    """Measured: miou 70.0; the dense classifier comes to 68.4 in the same steps. A map of ground
    alone has some 15."""
    written = tmp_path / "recipe.toml"
    written.write_text(
        f"""
        model = "{classifier}"
        output = "{tmp_path / "run"}"
        device = "cpu"
        task = "segmentation"
        [task_args]
        channels = 16
        pool_scales = [1, 2]
        auxiliary = 0.4
        auxiliary_channels = 8
        [data]
        dataset = "{shapes}"
        batch_size = 16
        augment = {{ none = true }}
        [finetune]
        epochs = 12
        lr = 4e-3
        warmup_epochs = 1
        eval_every = 100
        [eval]
        latency = false
        """
    )
    code, out, err = pela("run", written, "--json")
    assert code == 0, err
    found = json.loads(out)["eval"]
    assert found["metrics"]["miou"] > 60
    assert found["baseline"]["metrics"] == {}  # a classifier is no baseline of a segmenter
    assert found["drop"] is None
    before, after = (
        manifest_document.read(classifier),
        manifest_document.read(tmp_path / "run/finetune"),
    )
    assert after.library == "segmenter"
    assert [step.step for step in after.history] == ["teacher", "decompose", "finetune"]
    old = {f"backbone.{row.name}": row.rank for row in before.layers if row.rank is not None}
    assert {row.name: row.rank for row in after.layers if row.rank is not None} == old
    module = loading.load(tmp_path / "run/finetune").module
    assert after.params.after == sum(p.numel() for p in module.parameters())


def test_the_recipe_for_ade20k():
    """The Swin-B of the paper's recipe, of which UperNet keeps every factor. No weights."""
    imagenet = reading.load(RECIPES / "imagenet/swin_base.toml", [])
    spec = reading.load(RECIPES / "segmentation.toml", [])
    assert Path(spec.model) == imagenet.output
    swin = opening.open(imagenet.model, weights="random", meta=True)
    cut(swin, imagenet)
    chosen = registry.get(*schema.task_of(spec, spec.finetune))
    make = SimpleNamespace(size=(spec.data.image_size,) * 2)
    dataset = SimpleNamespace(classes=[str(n) for n in range(chosen.classes)], make=make)
    with init_empty_weights(include_buffers=True):
        fitted = chosen.fit(swin, dataset, spec.num_classes, spec.seed)
    saved = 87_768_224 - 62_164_128  # by the paper's recipe, of a classifier
    assert fitted.params == 121_279_716 - saved == 95_675_620
    assert len(find.low_rank_layers(fitted.module)) == 72
    with torch.no_grad():
        logits = fitted.module.eval()(torch.empty(1, 3, 512, 512, device="meta"))
    assert logits.shape == (1, 150, 128, 128)
    batches = 20_210 // spec.data.batch_size  # images of ADE20K for training
    assert run.updates(spec.finetune, batches) == 160_000
    assert round(spec.finetune.warmup_epochs * batches) == pytest.approx(1_500, abs=5)


def test_what_is_no_segmenter_is_refused(classifier, shapes, pela, tmp_path):
    flags = ("--data", shapes, "--task", "segmentation")
    code, _, err = pela("eval", classifier, *flags)
    assert code == 2
    assert "gives no output that task 'segmentation' could judge" in err
    spec = spec_of(
        shapes, tmp_path / "r", model=str(classifier), weights="pretrained", model_args={},
        pretrain={"labels": True},
    )  # fmt: skip
    from pelacli.train import splits

    with pytest.raises(RequestError, match=r"pretrain\.labels = false"):
        splits.open_splits(step_of(spec, "pretrain"), loading.load(classifier).opened)
    unlabelled = splits.open_splits(
        step_of(spec, "pretrain"), loading.load(classifier).opened, labelled=None
    )
    assert not unlabelled.labelled
