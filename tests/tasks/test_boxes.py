"""Images with boxes: boxes stay right through sizes, crops and padding."""

from __future__ import annotations

import json
from types import SimpleNamespace

import drawn_boxes
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_detectors import YOLOS, detection_batch, detection_data, tiny_detector

from pelacli.data.loader import loader
from pelacli.models import prediction
from pelacli.models.hf import detectors
from pelacli.tasks import registry
from pelacli.tasks.common.average_precision import AveragePrecision


def test_perfect_predictions_are_worth_100_at_any_size(tmp_path):
    # Two images of other shapes than the model's, so sizing and padding must all be undone.
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "train").mkdir()
    for number, (width, height) in enumerate([(90, 60), (50, 75)]):
        name = f"{number}.png"
        Image.new("RGB", (width, height)).save(tmp_path / "train" / name)
        image = {"id": number, "file_name": name, "width": width, "height": height}
        box = [10, 20, width - 15, height - 25]
        content["images"].append(image)
        content["annotations"].append({"image_id": number, "category_id": 1, "bbox": box})
    (tmp_path / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    opened = tiny_detector("detr", classes=1)
    batch = detection_batch(tmp_path, opened, side=32)
    assert batch["inputs"]["pixel_values"].shape == (2, 3, 48, 48)
    mask = batch["inputs"]["pixel_mask"]
    assert [int(m.any(1).sum()) for m in mask] == [32, 48]  # rows
    assert [int(m.any(0).sum()) for m in mask] == [48, 32]  # columns
    assert not batch["inputs"]["pixel_values"][0, :, 32:].any()
    logits = torch.full((2, 3, 2), -20.0)
    logits[:, 0, 0], logits[:, 1:, 1] = 20.0, 20.0
    boxes = torch.rand(2, 3, 4)
    boxes[:, 0] = batch["boxes"]
    output = SimpleNamespace(logits=logits, pred_boxes=boxes)
    found = detectors.detections(opened.module, output, batch["sizes"])
    assert torch.allclose(found[0]["boxes"][0], torch.tensor([10.0, 20, 85, 55]), atol=1e-3)
    assert torch.allclose(found[1]["boxes"][0], torch.tensor([10.0, 20, 45, 70]), atol=1e-3)
    metrics = AveragePrecision()
    metrics.update(found, batch)
    assert metrics.compute()["ap"] == pytest.approx(100)


def test_boxes_follow_their_shapes_through_the_augmentation(tmp_path):
    root = drawn_boxes.write(tmp_path / "d", {"train": 16}, side=96, seed=3)
    task = registry.get("detection", {"crop": 0.9, "zoom_out": 0.5, "sizes": [64, 80, 96]})
    opened = tiny_detector("yolos", YOLOS | {"patch_size": 16})
    how = {"task": task, "training": True, "size": 16, "vflip": 0.5, "color_jitter": 0.0}
    batch = detection_batch(root, opened, **how)
    again = detection_batch(root, opened, **how)
    assert torch.equal(batch["boxes"], again["boxes"])  # from the seed alone
    pixels = batch["inputs"]["pixel_values"]
    assert torch.equal(pixels, again["inputs"]["pixel_values"])
    mean, std = (torch.tensor(v)[:, None, None] for v in (opened.inputs.mean, opened.inputs.std))
    compared, start = 0, 0
    sizes = set()
    for image, count in zip(pixels, batch["counts"].tolist(), strict=True):
        shown = image != 0
        height, width = int(shown.any(0).any(1).sum()), int(shown.any(0).any(0).sum())
        sizes.add((height, width))
        if (
            count and int(batch["labels"][start]) == 0
        ):  # a square, whose box is tight when it is cut
            red, _, blue = image * std + mean
            ys, xs = torch.nonzero((red - blue > 0.3), as_tuple=True)
            x, y, w, h = (batch["boxes"][start] * torch.tensor([width, height] * 2)).tolist()
            edges = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
            seen = [int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]
            assert np.abs(np.subtract(edges, seen)).max() <= 2.5
            compared += 1
        start += count
    assert compared >= 4
    assert len(sizes) >= 3


def test_images_without_boxes_open_without_labels(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    opened = tiny_detector("detr")
    found = registry.get("detection").open(
        detection_data(tmp_path, 32), "train", inputs=opened.inputs, training=True, unlabelled=True
    )
    batch = next(iter(loader(found, batch_size=1)))
    assert (found.labelled, "labels" in batch) == (False, False)
    assert prediction.predict(opened.module, batch["inputs"]).shape == (1, 8, 3 + 4)
