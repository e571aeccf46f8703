"""kill -9 at any moment leaves the last good checkpoint usable."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from pelacli.recipe.training import Train
from pelacli.train import checkpoint
from pelacli.train.criterion import Criterion
from pelacli.train.loop import Objective, RunOptions, fit

KILLS = 5
SETTINGS = {"steps": 200, "lr": 0.01, "ema": 0.9, "save_every": 1, "log_every": 1, "keep": 2}


class Batches:
    """Four batches an epoch, in an order of the epoch's own."""

    start = epoch = 0

    def __len__(self):
        return 4

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.epoch)
        batches = torch.randn(4, 8, 32, generator=generator)
        yield from ({"inputs": batch} for batch in batches[self.start :])

    def set_epoch(self, epoch, start=0):
        self.epoch, self.start = epoch, start

    def close(self):
        pass


def train(output: Path | None, resume: bool = False) -> nn.Module:
    """Checkpoints after every step, so that most of the time goes into writing them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.Dropout(0.1), nn.Linear(64, 32))

    def losses(module, batch, done):
        return {"task": (module(batch["inputs"]) - batch["inputs"]).square().mean()}

    scores = iter(range(1000))
    objective = Objective(
        losses, lambda module: {"score": float(next(scores))}, Criterion(("score",))
    )
    settings = Train(**SETTINGS, epochs=50)
    fit(net, objective, Batches(), settings, RunOptions(1, "cpu", output, resume))
    return net


def newest(output: Path) -> int:
    """The step of the newest checkpoint, by its name: the run may be removing older ones."""
    found = checkpoint.steps(output)
    return int(found[-1].name.removeprefix("step-")) if found else 0


def check(output: Path) -> None:
    """The newest checkpoint is whole."""
    net = nn.Sequential(nn.Linear(32, 64), nn.Dropout(0.1), nn.Linear(64, 32))
    path = checkpoint.steps(output)[-1]
    assert set(checkpoint.load(path, {"model": net, "ema": net})) == {"optimizer"}
    assert checkpoint.state(path)["step"] == newest(output)


def child(output: Path) -> None:
    """Start the run again and again, each time in a fork that is killed at a moment of chance."""
    seed = random.randrange(10**6)
    print("seed", seed)
    chance, steps = random.Random(seed), [0]
    for _ in range(KILLS):
        worker = os.fork()
        if worker == 0:
            train(output, resume=True)
            os._exit(0)
        began = time.monotonic()  # its first step, then some moments of chance
        while newest(output) == steps[-1] and time.monotonic() - began < 20:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        check(output)
        steps.append(newest(output))
    print("steps", *steps)
    torch.save(train(output, resume=True).state_dict(), output / "end.pt")


# By default tests/benchmarks/test_crash.py kills a saving before each of its operations.
@pytest.mark.slow
def test_killed_at_random_moments_it_still_gives_the_weights_of_a_whole_run(tmp_path):
    paths = os.pathsep.join([*sys.path, str(Path(checkpoint.__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [int(word) for word in done.stdout.splitlines()[1].split()[1:]]
    assert len(steps) == KILLS + 1
    assert steps == sorted(set(steps)), done.stdout  # each went on from where the last was killed
    whole, end = train(None).state_dict(), torch.load(tmp_path / "end.pt")
    assert all(torch.equal(value, end[key]) for key, value in whole.items()), done.stdout
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left[-2:] == ["step-00000199", "step-00000200"]
    assert len(left) == 3  # and the best; no drafts of the killed


if __name__ == "__main__":
    child(Path(sys.argv[1]))
