"""DETR around dense and low-rank timm models: their layers move as they are, images of one size,
artefacts, healing, and a tiny one that learns, falls and is healed."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import drawn_boxes
import numpy as np
import pytest
import timm
import torch
import transformers as T
from accelerate import init_empty_weights
from backbones import Moved, counted, images
from paper_recipes import RECIPES, cut
from tiny_detectors import DETR, detection_batch, detection_data

import pelacli
from pelacli.artefact import changes, description, loading, saving
from pelacli.errors import RequestError
from pelacli.lowrank import find, replace
from pelacli.manifest import document, low_rank_config
from pelacli.models import heads, inputs, opening, wrapping
from pelacli.models.around import detector, segmenter
from pelacli.models.hf import detectors
from pelacli.recipe import reading, schema
from pelacli.recipe.training import Pretrain
from pelacli.tasks import registry
from pelacli.train import healing, recompute, regularisation

VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"
SHAPES = {
    VIT: {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    SWIN: {
        "img_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2],
        "window_size": 4,
    },
    "swinv2_tiny_window8_256": {
        "img_size": 64, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4,
    },
    "beit_base_patch16_224": {
        "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2,
    },
    "convnext_tiny": {"depths": [1, 1, 2, 1], "dims": [8, 16, 32, 64]},
    # Batch norms, and some with an activation in them.
    "levit_128s": {
        "img_size": 64, "embed_dim": [16, 32, 32], "num_heads": [1, 2, 2], "key_dim": 8,
        "depth": [1, 1, 1],
    },
}  # fmt: skip
RESNET = T.ResNetConfig(out_features=["stage4"])
ARGS = [f"{name}={value}" for name, value in DETR.items()]


def opened(name):
    torch.manual_seed(0)
    return opening.open(name, weights="random", model_args=SHAPES[name], num_classes=3)


def around(found, side=64, classes=2, queries=5):
    size = {"height": side, "width": side}
    return detector.detector(found, None, classes, queries, DETR, 0, size)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn") / "d"
    return drawn_boxes.write(root, {"train": 8, "val": 4}, side=64, most=2)


# Around a backbone -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SHAPES))
def test_a_low_rank_backbone_stays_low_rank(name, drawn, tmp_path):
    found = opened(name)
    pelacli.decompose(found.module, 0.6, scope="layers")
    pelacli.save(found.module, tmp_path / "classifier")
    source = loading.load(tmp_path / "classifier")
    moved = Moved(source)
    task = registry.get("detection", {"queries": 5, "detector_args": ARGS})
    dataset = task.open(detection_data(drawn, 64), "train", inputs=source.opened.inputs)
    fitted = task.fit(source.opened, dataset, None, seed=0)
    assert type(fitted.module).__name__ == "DetrForObjectDetection"
    described = moved.check(fitted, whole=around(opened(name)))

    # Written and read back to the bit, with what its images are.
    saving.save(fitted, described, tmp_path / "detector")
    again = loading.load(tmp_path / "detector")
    assert again.opened.inputs == fitted.inputs
    written = {k: v for k, v in again.opened.config.items() if k not in low_rank_config.KEYS}
    assert written == json.loads(json.dumps(fitted.config))
    assert fitted.inputs.size == (3, 64, 64)
    assert fitted.inputs.labels == ("square", "disc")
    assert (fitted.inputs.mean, fitted.inputs.std) == (found.inputs.mean, found.inputs.std)
    batch = detection_batch(drawn, again.opened, side=None)
    assert batch["inputs"]["pixel_values"].shape == (4, 3, 64, 64)
    with torch.no_grad():
        want, got = (m.eval()(**batch["inputs"]) for m in (fitted.module, again.module))
    assert want.logits.shape == (4, 5, 2 + 1)
    assert torch.equal(want.logits, got.logits)
    assert torch.equal(want.pred_boxes, got.pred_boxes)


@pytest.mark.parametrize("name", [VIT, SWIN])
@pytest.mark.parametrize("side", [64, 128])
def test_the_map_is_what_the_classifier_was_used_to(name, side):
    """The last features through the model's own last norm, at its own size and at another."""
    found = opened(name)
    with torch.no_grad():
        found.module.norm.weight.uniform_(0.5, 1.5)
        found.module.norm.bias.normal_()
    plain = copy.deepcopy(found.module)
    keep = {"window_size": 4} if name == SWIN else {}
    plain.set_input_size(img_size=(side, side), **keep)
    fitted = around(found, side)
    x = images(fitted)
    with torch.no_grad():
        features = plain.forward_features(x)
        [ours] = fitted.module.model.backbone.model(x).feature_maps
    if name == VIT:
        features = features[:, 1:].unflatten(1, (side // 8, side // 8))
    assert torch.allclose(ours, features.permute(0, 3, 1, 2), atol=1e-4)


def test_batch_norms_are_frozen_and_keep_their_activations():
    found = opened("levit_128s")
    norms = [m for m in found.module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    with torch.no_grad():
        for norm in norms:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    x = images(found)
    with torch.no_grad():
        want = found.module.forward_intermediates(x, indices=[-1], intermediates_only=True)[0]
        fitted = around(found)
        module = fitted.module.train()
        network = module.model.backbone.model.network
        got = network.eval().forward_intermediates(x, indices=[-1], intermediates_only=True)[0]
    assert torch.allclose(got, want, atol=1e-5)
    assert not [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_a_dense_model_is_trained_whole():
    """Every parameter gets a gradient, the same one where activations are recomputed."""
    labels = [
        {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
    ] * 2
    for name in (VIT, SWIN):
        fitted = around(opened(name))
        module, found = fitted.module.train(), []
        for on in (False, True):
            torch.manual_seed(0)
            module.zero_grad()
            batch = {"pixel_values": images(fitted)}
            with recompute.checkpointing(module, on=on):
                sum(detectors.with_loss(module, batch, labels)["loss_dict"].values()).backward()
            found.append({n: p.grad.clone() for n, p in module.named_parameters()})
        assert all(torch.allclose(found[1][n], grad, atol=1e-6) for n, grad in found[0].items())
        assert any(grad.abs().max() > 0 for n, grad in found[0].items() if "network" in n)
    assert "model.backbone.model.network.pos_embed" in regularisation.no_decay(
        around(opened(VIT)).module
    )
    regularisation.set_drop_path(module, 0.2)
    assert regularisation.set_drop_path(module, 0.0) is None


@pytest.mark.parametrize("name", [VIT, SWIN])
def test_full_rank_equals_dense(name):
    dense, full = around(opened(name)), around(opened(name))
    factors = {}
    for layer in find.find_layers(full.module, head=full.head):
        if layer.reason is None:
            u, values, v = torch.linalg.svd(layer.weight.double(), full_matrices=False)
            down, up = v * values.sqrt()[:, None], u * values.sqrt()
            factors[layer.name] = (down.float(), up.float(), layer.bias)
    assert sum("backbone" in name for name in factors) >= 8
    assert sum("coder" in name for name in factors) >= 20
    replace.replace(full.module, factors)
    x = images(dense)
    with torch.no_grad():
        want, got = dense.module.eval()(x), full.module.eval()(x)
    assert torch.allclose(want.logits, got.logits, atol=2e-4)
    assert torch.allclose(want.pred_boxes, got.pred_boxes, atol=2e-4)


def test_other_classes_leave_the_backbone():
    fitted = around(opened(SWIN), classes=4)
    pelacli.decompose(fitted.module, 0.6, scope="layers")
    low = find.low_rank_layers(fitted.module)
    heads.set_classes(fitted, 9, seed=0)
    assert find.low_rank_layers(fitted.module) == low
    assert (heads.num_classes(fitted), len(fitted.config["id2label"])) == (9, 9)
    assert fitted.module.eval()(images(fitted)).logits.shape == (2, 5, 9 + 1)


def test_transformers_reads_it_with_pela_at_hand(tmp_path):
    fitted = around(opened(SWIN))
    fitted.module.save_pretrained(tmp_path)
    x = images(fitted)
    again = opening.open(str(tmp_path)).module
    fresh = opening.open(str(tmp_path), weights="random", seed=7).module
    with torch.no_grad():
        want = fitted.module.eval()(x).logits
        assert torch.equal(again(x).logits, want)
        other = fresh(x).logits
    assert other.isfinite().all()
    assert not torch.allclose(other, want)


def in_a_new_process(*lines):
    """What these lines of Python print there."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_importing_the_backbone_leaves_transformers_tables_alone():
    known = in_a_new_process(
        "import transformers",
        "from pelacli.models.around import detector",
        "print('pela_timm' in transformers.CONFIG_MAPPING)",
    )
    assert known == "False"


def test_a_process_that_built_no_detector_opens_one(tmp_path):
    around(opened(SWIN)).module.save_pretrained(tmp_path)
    kind = in_a_new_process(
        "from pelacli.models import opening",
        f"print(type(opening.open({str(tmp_path)!r}).module.model.backbone.model).__name__)",
    )
    assert kind == "TimmMap"


# Images ------------------------------------------------------------------------------------------


def test_images_are_squares_of_one_size(drawn):
    found = opened(SWIN)
    task = registry.get("detection", {"detector_args": ARGS})
    for side, size in ((None, 64), (96, 96)):
        dataset = task.open(detection_data(drawn, side), "train", inputs=found.inputs)
        assert dataset[0]["inputs"].shape == (3, size, size)
        fitted = task.fit(opened(SWIN), dataset, None, 0)
        assert fitted.inputs.size == (3, size, size)
        batch = detection_batch(drawn, fitted, side=None)
        assert batch["inputs"]["pixel_values"].shape == (4, 3, size, size)
        assert batch["inputs"]["pixel_mask"].all()
    with pytest.raises(RequestError, match=r"images of 64×64 px, .* built for 96×96: set data\."):
        task.forward(fitted.module, detection_batch(drawn, fitted, side=64))


def test_what_has_no_place_in_a_detector_is_refused(drawn):
    swin = opened(SWIN)
    with pytest.raises(RequestError, match=r"timm model, .* set task_args\.detector = 'detr'"):
        detector.detector(swin, "yolos", 2, 5, {}, seed=0)
    with pytest.raises(RequestError, match="detector_args: detr refuses them"):
        detector.detector(swin, None, 2, 5, {"d_model": "wide"}, seed=0)
    swin = opened(SWIN)
    with pytest.raises(RequestError, match=r"no square images; set data\.image_size"):
        detector.detector(swin, None, 2, 5, {}, 0, {"height": 64, "width": 32})
    mixer = opening.open("mixer_s32_224", weights="random", model_args={"img_size": 64})
    with pytest.raises(RequestError, match="MlpMixer: gives no feature maps of 96 px images"):
        around(mixer, 96)
    convolutions = opening.open("test_resnet", weights="random")
    convolutions.module.forward_intermediates = None
    with pytest.raises(RequestError, match="ResNet: timm has no feature maps of it"):
        around(convolutions, 64)
    head = {"channels": 16, "pool_scales": [1, 2], "auxiliary_channels": 8, "seed": 0}
    own = segmenter.around(opened(SWIN), classes=2, image_size=None, **head)
    with pytest.raises(RequestError, match=r"pela's segmenter; .* models of timm and transf"):
        around(own)


@pytest.mark.slow
def test_every_kind_of_timm_goes_into_a_detector(tmp_path, monkeypatch):
    """Those of benchmarks/coverage.py: built around, written, read back to the bit."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import _timm_cases

    failed, kinds = {}, _timm_cases.kinds()
    for case in kinds:
        found = opening.open(case.ref, weights="random", model_args=case.args(), num_classes=3)
        described = description.describe(found, [], None)
        pelacli.decompose(found.module, 0.8, scope="layers", policy="uniform")
        try:
            fitted = around(found, found.inputs.size[1])
            saving.save(fitted, changes.relocated(fitted, described, {}), tmp_path / "a")
            again = loading.load(tmp_path / "a")
            x = images(fitted, 1)
            with torch.no_grad():
                want, got = fitted.module.eval()(x), again.module(x)
            assert find.low_rank_layers(fitted.module)
            assert torch.equal(want.logits, got.logits)
            assert torch.equal(want.pred_boxes, got.pred_boxes)
        except Exception as error:
            failed[case.name] = f"{type(error).__name__}: {error}"[:200]
    assert not failed, failed
    assert {case.group for case in kinds} == {case.group for case in _timm_cases.cases()}


# Full size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "side", "width", "grid"),
    [
        ("swin_base_patch4_window7_224", 640, 1024, 20),
        ("deit_base_patch16_224", 640, 768, 40),
        ("deit3_large_patch16_224", 640, 1024, 40),
    ],
)
def test_the_papers_models_at_full_size(name, side, width, grid):
    """Shapes and counts; all but the backbone is what transformers' DETR has around a ResNet, whose
    map has 2,048 channels."""
    with init_empty_weights(include_buffers=True):
        theirs = T.DetrForObjectDetection(T.DetrConfig(num_labels=91, backbone_config=RESNET))
        found = wrapping.wrap(timm.create_model(name))
        backbone = counted(found.module) - counted(found.module.get_classifier())
        positions = getattr(found.module, "pos_embed", None)
        before = 0 if positions is None else positions.numel()
        size = {"height": side, "width": side}
        fitted = detector.detector(found, None, 91, 100, {}, 0, size)
    rest = counted(theirs) - counted(theirs.model.backbone) + (width - 2048) * 256
    network = fitted.module.model.backbone.model.network
    after = 0 if positions is None else network.pos_embed.numel()
    assert after == (0 if positions is None else before + (grid**2 - 14**2) * width)
    assert counted(fitted.module) == backbone - before + after + rest
    x = torch.empty(1, 3, side, side, device="meta")
    with torch.no_grad():
        [one] = fitted.module.model.backbone.model(x).feature_maps
    assert one.shape == (1, width, grid, grid)


def test_the_recipe_for_coco():
    """The Swin-B of the paper's recipe, of which DETR keeps every factor. No weights."""
    imagenet = reading.load(RECIPES / "imagenet/swin_base.toml", [])
    spec = reading.load(RECIPES / "detection_swin.toml", [])
    assert Path(spec.model) == imagenet.output
    swin = opening.open(imagenet.model, weights="random", meta=True)
    cut(swin, imagenet)
    chosen = registry.get(*schema.task_of(spec, spec.finetune))
    dataset = SimpleNamespace(classes=[str(number) for number in range(80)], make=None)
    swin.inputs = inputs.ImageInput((3, 640, 640), (0.5,) * 3, (0.5,) * 3, fixed=True)
    with init_empty_weights(include_buffers=True):
        fitted = chosen.fit(swin, dataset, spec.num_classes, spec.seed)
    saved = 87_768_224 - 62_164_128  # by the paper's recipe, of a classifier
    assert fitted.params == 104_548_109 - saved == 78_944_013
    assert len(find.low_rank_layers(fitted.module)) == 72
    with torch.no_grad():
        [one] = fitted.module.model.backbone.model(
            torch.empty(1, 3, 640, 640, device="meta")
        ).feature_maps
    assert one.shape == (1, 1024, 20, 20)
    assert heads.num_classes(fitted) == 80


# Healing and learning ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [VIT, SWIN])
def test_it_is_healed_with_and_without_labels(name, drawn):
    teacher, student = around(opened(name)), around(opened(name))
    pelacli.decompose(student.module, ratio=0.6, scope="layers", policy="uniform")
    task = registry.get("detection")
    batch = detection_batch(drawn, student, side=None)
    settings = Pretrain(loss={"task": 1.0, "feature": 1.0, "logits": 1.0, "perturbation": 0.1})
    for labelled, names in ((True, {"class", "box", "giou"}), (False, set())):
        stage = healing.Stage(settings, student, teacher, task, labelled)
        network = [tap for tap in stage.taps if tap.startswith("model.backbone.model.network.")]
        assert (len(network), len(stage.taps)) == (2, 2 + 3)
        student.module.train()
        optimizer = torch.optim.SGD(student.module.parameters(), 1e-3)
        totals = []
        for _ in range(3):
            found = stage.losses(student.module, batch)
            assert set(found) == {"feature", "logits", "perturbation"} | names
            optimizer.zero_grad()
            total = sum(found.values())
            total.backward()
            optimizer.step()
            totals.append(float(total.detach()))
        assert totals[2] < totals[0]
        low = find.low_rank_layers(student.module)
        assert all(m.up.weight.grad.abs().max() > 0 for n, m in low.items() if "network" in n)


@pytest.mark.slow
def test_a_compressed_backbone_becomes_a_detector_on_the_command_line(here, pela):
    """One recipe: a timm classifier is cut down for the images of the boxes, then DETR is built
    around it and trained."""
    drawn_boxes.write(here / "shapes", {"train": 32, "val": 8}, side=64, seed=1)
    shape = ", ".join(f"{key} = {json.dumps(value)}" for key, value in SHAPES[SWIN].items())
    (here / "recipe.toml").write_text(
        f"""
        model = "{SWIN}"
        weights = "random"
        model_args = {{ {shape} }}
        output = "run"
        device = "cpu"
        task = "detection"
        [task_args]
        queries = 4
        detector_args = {json.dumps([*ARGS, "dropout=0.0"])}
        [data]
        dataset = "shapes"
        image_size = 64
        batch_size = 8
        augment = {{ none = true }}
        [decompose]
        ratio = "1/2"
        scope = "layers"
        calibrate = "train"
        samples = 16
        [finetune]
        epochs = 50
        lr = 2e-3
        log_every = 1
        [eval]
        latency = false
        """
    )
    code, out, err = pela("run", "recipe.toml", "--json")
    assert code == 0, err
    assert "a DetrForObjectDetection around run" in err or not err
    assert 0 <= json.loads(out)["eval"]["metrics"]["ap"] <= 100
    course = (here / "run/finetune/metrics.jsonl").read_text().splitlines()
    losses = [sum(row["losses"].values()) for row in map(json.loads, course) if "losses" in row]
    assert len(losses) == 200
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])

    before, after = document.read(here / "run/decompose"), document.read(here / "run/finetune")
    assert (before.library, after.library) == ("timm", "transformers")
    old = {f"model.backbone.model.network.{r.name}": r for r in before.layers if r.rank is not None}
    rows = {row.name: row for row in after.layers if row.rank is not None}
    assert {name: (r.rank, r.energy) for name, r in rows.items()} == {
        name: (r.rank, r.energy) for name, r in old.items()
    }
    code, out, err = pela("eval", "run/finetune", "--no-latency", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["metrics"]["ap"] >= 0
    code, out, err = pela("report", "run/finetune", "--json")
    assert code == 0, err
    [row] = json.loads(out)
    assert row["params"]["after"] == counted(loading.load(here / "run/finetune").module)
    code, _, err = pela("eval", "run/decompose", "--data", "shapes", "--task", "detection")
    assert code == 2
    assert err.count("\n") == 1


RECIPE = """
weights = "random"
num_classes = 2
output = "run"
device = "cpu"
task = "detection"
seed = 1

[task_args]
queries = 2
detector_args = [
    "d_model=48", "encoder_layers=1", "decoder_layers=2", "encoder_ffn_dim=96",
    "decoder_ffn_dim=96", "encoder_attention_heads=3", "decoder_attention_heads=3",
    "dropout=0.0", "init_std=0.15",
]

[data]
dataset = "shapes"
batch_size = 16
augment = { none = true }

[teacher]
epochs = 20
lr = 1.5e-3
warmup_epochs = 2
clip_grad = 1.0
weight_decay = 1e-4
eval_every = 100

[decompose]
ratio = "1/2"
scope = "layers"
policy = "uniform"

[pretrain]
epochs = 12
lr = 1.5e-3
clip_grad = 1.0
weight_decay = 1e-4
eval_every = 100

[pretrain.loss]
task = 1.0
feature = 10.0

[finetune]
epochs = 6
lr = 5e-4
clip_grad = 1.0
weight_decay = 1e-4
eval_every = 100

[eval]
latency = false
"""
# AP of dense → decomposed → healed → fine-tuned, with seeds 1, 2, 3 of data, weights and order:
# ViT 50.0 → 4.2 → 39.7 → 46.6, 38.4 → 0.5 → 41.6 → 45.3, 32.8 → 6.6 → 41.1 → 41.0. On another
# processor seed 1's dense model had 38.6: rounding decides much. Swin 41.5 → 2.2 → 43.2 → 48.3, and
# with features that weighed 1 and fewer epochs 37.9 → 1.0 → 44.9 → 43.9, 25.7 → 3.4 → 38.1 → 46.7
# and 7.7 → 1.0 → 15.5 → 17.8 (the dense one had hardly learned). The tests have seed 1.
LEARNERS = {
    VIT: {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    SWIN: {
        "img_size": 64, "patch_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4],
        "window_size": 4,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", [VIT, pytest.param(SWIN, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_detector_learns_falls_and_is_healed(name, here, pela):
    shape = LEARNERS[name]
    drawn_boxes.write(here / "shapes", {"train": 256, "val": 48}, side=shape["img_size"], seed=1)
    args = ", ".join(f"{key} = {json.dumps(value)}" for key, value in shape.items())
    about = f'model = "{name}"\nmodel_args = {{ {args} }}\n'
    (here / "recipe.toml").write_text(about + RECIPE)
    code, out, err = pela("run", "recipe.toml", "--json")
    assert code == 0, err
    found = json.loads(out)["eval"]
    healed, dense = found["metrics"], found["baseline"]["metrics"]
    code, out, err = pela("eval", "run/decompose", "--no-latency", "--json")
    assert code == 0, err
    fallen = json.loads(out)[0]["metrics"]
    assert dense["ap"] > 25
    assert fallen["ap"] < dense["ap"] / 3
    assert healed["ap"] > dense["ap"] - 8
    assert found["params"] < 0.75 * found["baseline"]["params"]
