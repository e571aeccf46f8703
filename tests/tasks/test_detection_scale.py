"""Detection over two processes: losses and average precision are those of one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import transformers
from launched import by_torchrun

from pelacli.models.hf import detectors
from pelacli.system import processes
from pelacli.tasks.common.average_precision import AveragePrecision

COUNTS = (1, 4, 2, 5)  # objects in each image


KINDS = ("ForObjectDetection", "DeformableDetrForObjectDetection")  # of transformers' losses


def parts(rank: int, world: int, kind: str) -> dict[str, float]:
    """Losses of a tiny YOLOS, or of one with Deformable DETR's loss, on this process's images."""
    torch.manual_seed(0)
    module = transformers.YolosForObjectDetection(
        transformers.YolosConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            image_size=[32, 32], patch_size=8, num_detection_tokens=6, num_labels=3,
        )
    ).eval()  # fmt: skip
    module.loss_type, module.config.focal_alpha = kind, 0.25
    images, labels = torch.randn(len(COUNTS), 3, 32, 32), []
    for count in COUNTS:
        boxes = torch.rand(count, 4) * 0.4 + 0.2
        labels.append({"class_labels": torch.randint(0, 3, (count,)), "boxes": boxes})
    share = slice(rank * len(COUNTS) // world, (rank + 1) * len(COUNTS) // world)
    found = detectors.with_loss(module, {"pixel_values": images[share]}, labels[share])
    return {name: float(value.detach()) for name, value in found["loss_dict"].items()}


def detections_of(number):
    """(detections, batch) of an image with one object; the error grows with its number."""
    batch = {
        "sizes": torch.tensor([[100, 100]]), "numbers": torch.tensor([number]),
        "counts": torch.tensor([1]), "labels": torch.tensor([0]),
        "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]]), "crowd": torch.tensor([False]),
        "area": torch.tensor([1600.0]),
    }  # fmt: skip
    detections = {
        "boxes": torch.tensor([[30.0 + 4 * number, 30, 70, 70]]),
        "scores": torch.tensor([0.5 + 0.1 * number]),
        "labels": torch.tensor([0]),
    }
    return [detections], batch


def precision(numbers: Iterable[int]) -> dict[str, float]:
    metrics = AveragePrecision()
    for number in numbers:
        metrics.update(*detections_of(number))
    return metrics.compute()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes has computed."""
    folder = tmp_path_factory.mktemp("two")
    launch, environment = by_torchrun(__file__, folder, 2, OMP_NUM_THREADS="1")
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_all_processes_get_the_figures_of_all_images(two):
    figures = precision(range(3))
    assert two[0]["figures"] == two[1]["figures"] == figures
    assert 0 < figures["ap"] < 100


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_count_as_they_do_for_one_process(two, kind):
    alone = parts(0, 1, kind)
    assert {"class", "box", "giou"} <= set(alone)
    for name in ("class", "box", "giou"):
        if name == "class" and kind == "ForObjectDetection":
            continue  # a weighted mean over a process's own queries
        mean = (two[0]["losses"][kind][name] + two[1]["losses"][kind][name]) / 2
        assert mean == pytest.approx(alone[name], rel=1e-5)


if __name__ == "__main__":
    state = processes.join("cpu")
    rank = state.process_index
    # Two images for one process, one for the other.
    losses = {kind: parts(rank, 2, kind) for kind in KINDS}
    result = {"losses": losses, "figures": precision(range(rank, 3, 2))}
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(result))
    state.wait_for_everyone()
