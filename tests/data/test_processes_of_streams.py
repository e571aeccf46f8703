"""Two processes with two workers each heal on shards that are fewer than these four readers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from launched import by_torchrun
from PIL import Image
from shard_files import encoded, write_info, write_split

import pelacli.__main__

RECIPE = """
model = "vit_tiny_patch16_224"
weights = "random"
model_args = { img_size = 8, patch_size = 4, embed_dim = 16, depth = 1, num_heads = 1 }
num_classes = 2
output = "OUTPUT"
device = "cpu"
data = { dataset = "wds/.", val = "VAL", batch_size = 4, workers = 2, on_bad_sample = "skip" }
decompose = { ratio = "0.6", calibrate = "train", samples = 8 }
pretrain = { steps = 3, lr = 1e-3, labels = false }
"""


def split(root, name, shards, samples, bad=()):
    """A split of noise in so many shards; the bad samples are cut off."""
    generator = np.random.default_rng(len(name))
    whole = []
    for number in range(samples):
        png = encoded(Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)))
        whole.append({"png": png[:40] if number in bad else png, "cls": b"0"})
    return write_split(root, name, *(whole[shard::shards] for shard in range(shards)))


def child(folder: Path) -> None:
    """What each of the two processes does."""
    os.chdir(folder)
    for recipe in ("one-sample.toml", "two.toml"):
        sys.argv = ["pela", "run", recipe, "--json"]
        try:
            pelacli.__main__._run()
        except pelacli.RequestError as error:
            Path(f"refused-{os.environ['RANK']}").write_text(str(error))


def recipe(folder, name, val):
    made = RECIPE.replace("OUTPUT", name).replace("VAL", val)
    (folder / f"{name}.toml").write_text(made)


@pytest.mark.slow
def test_fewer_shards_than_readers_are_shared_and_fewer_samples_are_refused(pela, here):
    pytest.importorskip("webdataset")
    splits = [split(here, "train", 2, 24, bad=(5,)), split(here, "validation", 1, 9)]
    splits.append(split(here, "lonely", 1, 1))
    write_info(here, *splits)
    for name, val in (("one-sample", "lonely"), ("two", "validation"), ("one", "validation")):
        recipe(here, name, val)
    launch, environment = by_torchrun(__file__, here, 2, OMP_NUM_THREADS="1")
    running = subprocess.Popen(
        launch, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    code, _, err = pela("run", "one.toml", "--json")
    assert code == 0, err
    said, stderr = running.communicate(timeout=300)
    assert running.returncode == 0, stderr
    for rank in (0, 1):
        line = (here / f"refused-{rank}").read_text()
        assert "1 samples a batch for 2 processes; each needs one" in line
    assert not (here / "one-sample").exists()
    assert [step["skipped"] for step in json.loads(said)["steps"]] == [False, False]

    def before(name):
        course = (here / name / "pretrain" / "metrics.jsonl").read_text().splitlines()
        return json.loads(course[0])["metrics"]

    # The student before its first step, on all of the validation samples, each counted once.
    assert before("two") == pytest.approx(before("one"), rel=1e-4)


if __name__ == "__main__":
    with contextlib.suppress(SystemExit):
        child(Path(sys.argv[1]))
