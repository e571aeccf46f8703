"""A detector's losses over two processes are those of one at the same batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from launched import by_torchrun

from pelacli.models.hf import detectors
from pelacli.system import processes

COUNTS = (1, 4, 2, 5)  # objects in each image


def parts(rank: int, world: int) -> dict[str, float]:
    """Losses of a tiny YOLOS on this process's images."""
    torch.manual_seed(0)
    module = transformers.YolosForObjectDetection(
        transformers.YolosConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            image_size=[32, 32], patch_size=8, num_detection_tokens=6, num_labels=3,
        )
    ).eval()  # fmt: skip
    images, labels = torch.randn(len(COUNTS), 3, 32, 32), []
    for count in COUNTS:
        boxes = torch.rand(count, 4) * 0.4 + 0.2
        labels.append({"class_labels": torch.randint(0, 3, (count,)), "boxes": boxes})
    share = slice(rank * len(COUNTS) // world, (rank + 1) * len(COUNTS) // world)
    found = detectors.with_loss(module, {"pixel_values": images[share]}, labels[share])
    return {name: float(value.detach()) for name, value in found["loss_dict"].items()}


def test_boxes_count_as_they_do_for_one_process(tmp_path):
    launch, environment = by_torchrun(__file__, tmp_path, 2, OMP_NUM_THREADS="1")
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    two = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    one = parts(0, 1)
    assert {"class", "box", "giou"} <= set(one)
    for name in ("box", "giou"):  # the classes' are weighted means over a process's own queries
        assert (two[0][name] + two[1][name]) / 2 == pytest.approx(one[name], rel=1e-5)


if __name__ == "__main__":
    state = processes.join("cpu")
    rank = state.process_index
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(parts(rank, 2)))
    state.wait_for_everyone()
