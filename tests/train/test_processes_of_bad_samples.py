"""Two processes that pass over samples train the weights of one: but for the order of sums."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from launched import by_torchrun
from PIL import Image

from pelacli.data.dataset import open_dataset
from pelacli.data.loader import loader
from pelacli.models.inputs import ImageInput
from pelacli.recipe.training import Train
from pelacli.train.loop import Objective, RunOptions, fit

PRECISIONS = (torch.float32, torch.float64)


def images(folder: Path) -> None:
    """48 images of noise in four classes, of which three can't be read."""
    generator = np.random.default_rng(0)
    for number in range(48):
        file = folder / "train" / "abcd"[number % 4] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file)
        if number in (5, 17, 18):
            file.write_bytes(file.read_bytes()[:40])


def trained(folder: Path, precision: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights of a small network after two epochs."""
    torch.manual_seed(0)
    wide, narrow = torch.nn.Linear(192, 64), torch.nn.Linear(64, 4)
    net = torch.nn.Sequential(torch.nn.Flatten(), wide, torch.nn.GELU(), narrow).to(precision)
    inputs = ImageInput((3, 8, 8), (0.5,) * 3, (0.5,) * 3)
    data = open_dataset(str(folder), "train", inputs=inputs, training=True)
    batches = loader(data, batch_size=8, shuffle=True, drop_last=True, num_classes=4, seed=3,
                     skips_bad=True)  # fmt: skip

    def losses(module, batch, done):
        output = module(batch["inputs"].to(precision))
        return {"task": torch.nn.functional.cross_entropy(output, batch["labels"])}

    fit(
        net, Objective(losses), batches, Train(opt="adamw", lr=1e-3, epochs=2), RunOptions(3, "cpu")
    )
    assert len(batches.passed_over.messages) > 0
    return net.state_dict()


@pytest.mark.slow
def test_two_processes_differ_from_one_by_rounding_alone(tmp_path):
    images(tmp_path)
    launch, environment = by_torchrun(__file__, tmp_path, 2, OMP_NUM_THREADS="1")
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    off = []
    for precision in PRECISIONS:
        two = torch.load(tmp_path / f"{precision}.pt")
        one = trained(tmp_path, precision)
        off.append(max(float((two[name] - one[name]).abs().max()) for name in one))
    print(f"largest difference of a weight: {off[0]:.1e} in float32, {off[1]:.1e} in float64")
    assert off[0] < 1e-4
    assert off[1] < 1e-12  # a sample that counts otherwise would differ in both alike


def child(folder: Path) -> None:
    """What each of the two processes does."""
    from pelacli.system import processes

    processes.join("cpu")
    for precision in PRECISIONS:
        weights = trained(folder, precision)
        if processes.is_first():
            torch.save(weights, folder / f"{precision}.pt")


if __name__ == "__main__":
    child(Path(sys.argv[1]))
