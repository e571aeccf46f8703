"""COCO's average precision, by hand."""

from __future__ import annotations

import drawn_boxes
import pytest
import torch
from tiny_detectors import VIT, detection_batch, detection_data, tiny_detector

from pelacli.data.loader import loader
from pelacli.errors import RequestError
from pelacli.models import opening
from pelacli.tasks import base, registry
from pelacli.tasks.common.average_precision import AveragePrecision


def test_average_precision_by_hand():
    # Two dogs. Three findings by score: one at an overlap of 0.78, a false one, one exactly right.
    truth = {
        "sizes": torch.tensor([[100, 100]]), "numbers": torch.tensor([0]),
        "counts": torch.tensor([3]), "labels": torch.tensor([0, 0, 0]),
        "boxes": torch.tensor([[0.2, 0.25, 0.4, 0.5], [0.7, 0.25, 0.4, 0.5], [0.5, 0.8, 1, 0.4]]),
        "crowd": torch.tensor([False, False, True]),
        "area": torch.tensor([2000.0, 2000.0, 4000.0]),
    }  # fmt: skip
    found = {
        "boxes": torch.tensor(
            [[0, 0, 40, 39.0], [44, 44, 50, 50], [50, 0, 90, 50], [0, 70, 30, 100.0]]
        ),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.95]),
        "labels": torch.tensor([0, 0, 0, 0]),
    }
    metrics = AveragePrecision()
    metrics.update([found], truth)
    figures = metrics.compute()
    # The finding within the crowd counts for nothing. COCO reads precision at recalls 0, 0.01, … 1
    # (51 of them up to 0.5): below 0.78 all of 1, then 2/3; above, the first is a false one too.
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 101 / 3
    assert figures["ap50"] == pytest.approx(100 * low)
    assert figures["ap75"] == pytest.approx(100 * low)
    assert figures["ap"] == pytest.approx(100 * (6 * low + 4 * high) / 10)
    # Of medium ones, the false finding of 36 pixels is none.
    assert figures["apm"] == pytest.approx(100 * (6 + 4 * 51 / 101 / 2) / 10)
    assert not {"aps", "apl"} & set(figures)  # there are none of that size


def test_figures_need_objects_and_the_same_classes(tmp_path):
    drawn = drawn_boxes.write(tmp_path / "drawn", {"train": 8, "val": 4}, most=2)
    metrics = AveragePrecision()
    none = {
        "sizes": torch.tensor([[9, 9]]), "numbers": torch.tensor([0]), "counts": torch.tensor([0]),
        "labels": torch.zeros(0).long(), "boxes": torch.zeros(0, 4), "area": torch.zeros(0),
        "crowd": torch.zeros(0).bool(),
    }  # fmt: skip
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": none["labels"]}
    metrics.update([nothing], none)
    with pytest.raises(RequestError, match="no objects to find"):
        metrics.compute()
    opened, task = tiny_detector("yolos", classes=5), registry.get("detection")
    held_out = loader(task.open(detection_data(drawn), "val", inputs=opened.inputs), batch_size=4)
    with pytest.raises(RequestError, match=r"2 classes .* and the model 5 others"):
        base.evaluate(opened.module, held_out, task, num_classes=5)
    vit = opening.open("vit", weights="random", model_args=VIT)
    with pytest.raises(RequestError, match="no detector; `pela finetune`"):
        task.forward(vit.module, {"inputs": {}})
    rt_detr = tiny_detector("rt_detr")
    with pytest.raises(RequestError, match=r"images of 48x48: .* multiples of 32; set"):
        task.forward(rt_detr.module, detection_batch(drawn, rt_detr))
