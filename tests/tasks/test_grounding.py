"""Grounding: maps against a plain gradient, boxes against pixel sums, formats, learning."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pair_world as world
import pytest
import torch
import torch.nn.functional as F
from albef_tiny import pairs, tiny
from PIL import Image

from pelacli.artefact import loading
from pelacli.data.loader import loader
from pelacli.errors import RequestError
from pelacli.models import opening
from pelacli.models.pairs.families import view_of
from pelacli.recipe.data import Augment, Data
from pelacli.tasks import base, registry
from pelacli.tasks import grounding as tasks_grounding

QUIET = Augment(none=True)
BOXES = {"boxes": "data/dets.json", "layer": 1}


def batches(model, split: str = "val", size: int = 8, args: dict | None = None, **how):
    task = registry.get("grounding", args or BOXES)
    data = Data(dataset="data", augment=QUIET)
    return loader(task.open(data, split, inputs=model.inputs, **how), batch_size=size)


def test_blip_s_map_is_attention_times_its_positive_gradient(here):
    """By a second way: attention is replaced by a leaf, and the match differentiated by it."""
    world.referring(here / "data", 4, name="val")
    model = opening.open(str(world.model("BlipForImageTextRetrieval", here / "m")))
    inputs = next(iter(batches(model, size=4)))["inputs"]
    found = tasks_grounding.heatmaps(view_of(model.module), inputs, 1)
    assert found.shape == (4, 4, 4)
    module = model.module.text_encoder.encoder.layer[1].crossattention.self
    seen = {}

    def replaced(m, args, kwargs, output):
        states = kwargs["encoder_hidden_states"]
        heads, width = m.num_attention_heads, m.attention_head_size
        split = (len(states), -1, heads, width)
        query = m.query(args[0]).view(split).transpose(1, 2)
        key, value = (f(states).view(split).transpose(1, 2) for f in (m.key, m.value))
        seen["a"] = (query @ key.mT / math.sqrt(width)).softmax(-1).detach().requires_grad_()
        mixed = (seen["a"] @ value).transpose(1, 2).flatten(2)
        return mixed, seen["a"]

    handle = module.register_forward_hook(replaced, with_kwargs=True)
    states = model.module.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state
    fused = model.module.text_encoder(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        encoder_hidden_states=states,
    ).last_hidden_state
    model.module.itm_head(fused[:, 0])[:, 1].sum().backward()
    handle.remove()
    weighted = (seen["a"] * seen["a"].grad.clamp_min(0)).detach()
    for row in range(4):
        length = int(inputs["attention_mask"][row].sum())
        wanted = weighted[row, :, :length, 1:].sum((0, 1)).view(4, 4)
        assert torch.allclose(found[row] / found[row].sum(), wanted / wanted.sum(), atol=1e-4)


def test_maps_leave_gradients_and_frozen_weights_as_they_were(here):
    world.referring(here / "data", 2, name="val")
    model = opening.open(str(world.model("BlipForImageTextRetrieval", here / "m")))
    inputs = next(iter(batches(model, size=4)))["inputs"]
    wanted = tasks_grounding.heatmaps(view_of(model.module), inputs, 1)
    model.module.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(tasks_grounding.heatmaps(view_of(model.module), inputs, 1), wanted)
    assert all(p.grad is None for p in model.module.parameters())
    assert not inputs["pixel_values"].requires_grad
    with pytest.raises(RequestError, match="layer 2: has no cross-attention; choose one of 0 to 1"):
        tasks_grounding.heatmaps(view_of(model.module), inputs, 2)


def test_albef_s_map_is_attention_times_its_positive_gradient():
    network, inputs = tiny().eval(), pairs()
    view = view_of(network)
    heat = tasks_grounding.heatmaps(view, inputs, 3)
    assert heat.shape == (6, 4, 4)
    assert all(p.grad is None for p in network.parameters())
    images, texts = view.encode_images(inputs["pixel_values"]), view.encode_texts(inputs)
    with view.attention_maps(3) as maps:
        score = view.match(images, texts)[:, 1]
        (attention,) = maps
        attention.retain_grad()
        score.sum().backward()
    assert torch.allclose(attention.sum(-1), torch.ones(6, 2, 7), atol=1e-5)
    expected = torch.zeros(6, 16)
    for b in range(6):
        for h in range(2):
            for t in range(int(inputs["attention_mask"][b].sum())):
                felt = attention.grad[b, h, t].clamp(min=0) * attention[b, h, t].detach()
                expected[b] += felt[1:] / (2 * 7)
    assert torch.allclose(heat.flatten(1), expected, atol=1e-7)
    assert expected.abs().sum() > 0
    # Afterwards the layer runs its fused kernel again, to the same score.
    assert torch.allclose(view.match(images, texts)[:, 1], score, atol=1e-5)


@pytest.mark.parametrize("layer", [-1, 1, 4])
def test_albef_names_the_layers_that_have_a_map(layer):
    with pytest.raises(
        RequestError, match=f"layer {layer}: has no cross-attention; choose one of 2 to 3"
    ):
        tasks_grounding.heatmaps(view_of(tiny()), pairs(), layer)


def test_the_best_box_has_the_most_heat_for_the_root_of_its_area():
    draw = torch.Generator().manual_seed(0)
    heat = torch.rand(6, 6, generator=draw)
    size = (37, 23)
    pixels = F.interpolate(heat[None, None].double(), (23, 37), mode="bicubic")[0, 0].numpy()
    chance = np.random.default_rng(0)
    for _ in range(20):
        corners = [(*chance.uniform(0, 20, 2), *chance.uniform(2, 15, 2)) for _ in range(7)]
        scores = []
        for x, y, w, h in corners:
            inside = pixels[int(y) : int(y + h), int(x) : int(x + w)].sum()
            scores.append(inside / (w * h) ** 0.5)
        assert tasks_grounding.best_box(heat, corners, size) == corners[int(np.argmax(scores))]


def test_overlap_is_intersection_over_union():
    assert tasks_grounding.overlap((0, 0, 4, 4), (0, 0, 4, 4)) == 1
    assert tasks_grounding.overlap((0, 0, 4, 4), (2, 0, 4, 4)) == pytest.approx(8 / 24)
    assert tasks_grounding.overlap((0, 0, 4, 4), (4, 4, 4, 4)) == 0
    assert tasks_grounding.overlap((0, 0, 4, 4), (1, 1, 2, 2)) == pytest.approx(4 / 16)


def test_figures_are_of_all_expressions_and_of_each_part(here, monkeypatch):
    world.referring(here / "data", 5, name="val")
    model = opening.open(str(world.model("BlipForImageTextRetrieval", here / "m")))
    entries = json.loads(Path("data/val.json").read_text())
    hot = torch.zeros(4, 4)
    hot[:2, 1:3] = 1  # whatever is at the top
    monkeypatch.setattr(
        tasks_grounding, "heatmaps", lambda _v, i, _l: hot.expand(len(i["input_ids"]), 4, 4)
    )
    task = registry.get("grounding", BOXES)
    found = base.evaluate(model.module, batches(model, size=3), task)
    dets, right = json.loads(Path("data/dets.json").read_text()), {"val": [], "testA": []}
    for e in entries:
        boxes = dets[str(int(e["image"].split("_")[1][:12]))]
        best = tasks_grounding.best_box(hot, [tuple(b) for b in boxes], (32, 32))
        right[e["split"]].append(tasks_grounding.overlap(best, tuple(e["bbox"])) >= 0.5)
    both = right["val"] + right["testA"]
    assert found == {
        "accuracy": pytest.approx(100 * np.mean(both)),
        "val_d": pytest.approx(100 * np.mean(right["val"])),
        "testA_d": pytest.approx(100 * np.mean(right["testA"])),
    }
    assert 0 < found["accuracy"] < 100


def test_true_boxes_may_come_from_a_file_of_their_own(here):
    world.referring(here / "data", 3, name="val")
    model = opening.open(str(world.model("BlipForImageTextRetrieval", here / "m")))
    args = BOXES | {"refs": "refs.json"}
    wanted = [row for b in batches(model) for row in b["raw"]]
    entries = json.loads(Path("data/val.json").read_text())
    Path("refs.json").write_text(
        json.dumps([{k: e[k] for k in ("ref_id", "bbox", "split")} for e in entries])
    )
    bare = [{k: e[k] for k in ("image", "text", "ref_id")} for e in entries]
    Path("data/val.json").write_text(json.dumps(bare))
    with pytest.raises(RequestError, match=r"val.json, entry 1: no bbox .* give task_args.refs"):
        next(iter(batches(model)))
    found = [row for b in batches(model, args=args) for row in b["raw"]]
    assert found == wanted
    refs = json.loads(Path("refs.json").read_text())
    Path("refs.json").write_text(json.dumps([*refs, refs[0]]))  # said twice, it is still one
    assert [row for b in batches(model, args=args) for row in b["raw"]] == wanted
    Path("refs.json").write_text(json.dumps([*refs, refs[0] | {"split": "testB"}]))
    with pytest.raises(RequestError, match=r"refs.json, entry 7: ref_id 0 comes twice"):
        batches(model, args=args)
    Path("refs.json").write_text(json.dumps(refs))
    bare[1]["ref_id"] = 99
    Path("data/val.json").write_text(json.dumps(bare))
    with pytest.raises(RequestError, match=r"entry 2: ref_id 99 is not in refs.json"):
        batches(model, args=args)


def test_boxes_are_needed_and_checked(here):
    world.referring(here / "data", 2, name="val")
    model = opening.open(str(world.model("BlipForImageTextRetrieval", here / "m")))
    with pytest.raises(RequestError, match=r"entry 1: no boxes to choose from; .*task_args.boxes"):
        next(iter(batches(model, args={"layer": 1})))
    file = Path("data/dets.json")
    dets = json.loads(file.read_text())
    key = next(iter(dets))
    for value, message in (
        ([[1, 2, 3]], r"dets.json, \d+, box 1: no box"),
        ([[1, 2, 0, 3]], r"dets.json, \d+, box 1: no box"),
        ([[math.nan, 2, 4, 3]], r"dets.json, \d+, box 1: no box"),
        ([[1, 2, 4, math.inf]], r"dets.json, \d+, box 1: no box"),
        ([], r"dets.json, \d+: expected a list of boxes"),
    ):
        file.write_text(json.dumps(dets | {key: value}))
        with pytest.raises(RequestError, match=message):
            batches(model)
    del dets[key]
    file.write_text(json.dumps(dets))
    with pytest.raises(RequestError, match=rf"entry 1: no boxes of image {key} in data/dets.json"):
        batches(model)


RECIPE = """
model = "m"
output = "run"
task = "grounding"
task_args = { boxes = "data/dets.json", layer = LAYER, alpha = 0.0 }

[data]
dataset = "data"
batch_size = 24

[data.augment]
none = true

[teacher]
epochs = EPOCHS
lr = 1e-3
warmup_epochs = 1
eval_every = 100

[decompose]
ratio = RATIO

[pretrain]
epochs = 8
lr = 1e-3
eval_every = 100

[finetune]
epochs = 4
lr = 3e-4
eval_every = 100
"""


@pytest.mark.slow
def test_blip_learns_where_things_are_falls_and_comes_back(pela, here):
    """Nobody tells it boxes; of four that it may choose from one is right."""
    world.model("BlipForImageTextRetrieval", here / "m")
    world.referring(here / "data", 240)
    world.referring(here / "data", 48, seed=9_000_000, name="val")
    text = RECIPE.replace("LAYER", "1").replace("EPOCHS", "40").replace("RATIO", "0.5")
    (here / "r.toml").write_text(text)
    code, _, err = pela("run", "r.toml")
    assert code == 0, err
    scores = {}
    for step in ("dense", "decompose", "pretrain", "finetune"):
        found = loading.load(here / "run" / step)
        task = registry.get("grounding", BOXES)
        scores[step] = base.evaluate(found.module, batches(found.opened, size=48), task)
    dense = loading.load(here / "run" / "dense")
    other = base.evaluate(
        dense.module, batches(dense.opened, split=world.swapped(here / "data"), size=48), task
    )
    print(scores, other)
    scores = {step: found["accuracy"] for step, found in scores.items()}
    assert scores["dense"] > 45  # by chance it is 25
    assert other["accuracy"] < scores["dense"] - 20  # the text tells it which of the two is meant
    assert scores["decompose"] < scores["dense"] - 5
    assert scores["finetune"] > scores["dense"] - 8


def test_boxes_of_a_larger_original_are_refused(here):
    world.referring(here / "data", 2, name="val")
    model = opening.open(str(world.model("BlipForImageTextRetrieval", here / "m")))
    for file in (here / "data").glob("*.png"):
        Image.open(file).resize((16, 16)).save(file)
    with pytest.raises(RequestError, match=r"val.json, entry 1 .*outside of the picture, 16×16 px"):
        list(batches(model))
