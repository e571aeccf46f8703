"""``pela run``, ``pela pretrain`` and ``pela finetune`` on a recipe of every step."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from json_output import document
from PIL import Image

RECIPE = """
model = "vit_tiny_patch16_224"
weights = "random"
model_args = { img_size = 16, patch_size = 8, embed_dim = 32, depth = 2, num_heads = 2 }
num_classes = 2
output = "runs/tiny"
[data]
dataset = "images"
batch_size = 8
[teacher]
steps = 2
[decompose]
ratio = "0.7"
calibrate = "train"
samples = 16
[pretrain]
steps = 2
[finetune]
steps = 2
[eval]
"""


@pytest.fixture
def recipe(here, monkeypatch):
    monkeypatch.setattr("pelacli.steps.latency.SECONDS", 0.02)  # of timing
    generator = torch.Generator().manual_seed(0)
    for split, count in {"train": 12, "validation": 4}.items():
        for shade, name in enumerate(("dark", "light")):
            folder = here / "images" / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = torch.randint(0, 128, (16, 16, 3), generator=generator) + 127 * shade
                Image.fromarray(pixels.byte().numpy()).save(folder / f"{n}.png")
    path = here / "tiny.toml"
    path.write_text(RECIPE)
    return path


def test_a_recipe_is_run_once_and_again_from_the_step_that_changed(pela, recipe, here):
    done = document(pela("run", recipe, "--json"))
    steps = {step["step"]: step["skipped"] for step in done["steps"]}
    assert all(set(s) >= {"step", "artefact", "skipped", "seconds"} for s in done["steps"])
    assert done["eval"]["latency_ms"] > 0
    assert steps == dict.fromkeys(("teacher", "decompose", "pretrain", "finetune"), False)
    assert {"artefact", "metrics", "baseline", "drop", "agreement"} <= set(done["eval"])
    assert set(done["eval"]["metrics"]) >= {"accuracy"}
    healed = done["steps"][2]
    assert set(healed["metrics"]) == set(healed["start"]) >= {"accuracy", "kl"}
    again = document(pela("run", recipe, "--json"))
    assert all(step["skipped"] for step in again["steps"])
    code, out, err = pela("run", recipe, "--verbose")
    assert (code, out.count("done already")) == (0, 4)
    assert f"accuracy {healed['start']['accuracy']:.4g} → " in out
    assert "teacher: done already" in err
    other = ("--set", "pretrain.lr=0.01", "--set", "pretrain.result=last")
    changed = document(pela("run", recipe, "--json", *other))
    assert [step["skipped"] for step in changed["steps"]] == [True, True, False, False]

    code, _, err = pela("run", recipe, "--set", "eval.max_drop=-1000")
    assert (code, "accuracy drops by" in err) == (3, True)

    for command in (["pretrain"], ["finetune"], ["finetune", "--dense"]):
        done = document(pela(*command, recipe, "--json"))
        assert set(done) >= {"artefact", "steps", "metrics"}
        assert done["steps"] == 2
        assert (Path(done["artefact"]) / "metrics.jsonl").is_file()
    gate = ("eval", "runs/tiny", "--against", "runs/tiny/dense", "--no-latency", "--json")
    code, out, err = pela(*gate, "--max-drop", "-1000")
    assert code == 3
    assert set(json.loads(out)[0]) >= {"metrics", "baseline", "drop", "agreement"}
    assert "accuracy drops by" in err
    assert pela(*gate, "--max-drop", "1000")[0] == 0


def test_an_unfinished_run_of_other_settings_is_not_mixed_in(pela, recipe, here):
    """Stopped after a checkpoint, as a kill would: then continued, refused, or forced."""
    from pelacli.train import checkpoint as train_checkpoint

    real, calls = train_checkpoint.prune, []

    def dies(*args):
        real(*args)
        calls.append(args)
        raise KeyboardInterrupt

    long = ("--set", "teacher.steps=4", "--set", "teacher.save_every=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_checkpoint, "prune", dies)
        assert pela("finetune", recipe, "--dense", *long)[0] == 130
    assert calls
    other = pela("finetune", recipe, "--dense", "--resume", *long, "--set", "teacher.lr=0.5")
    assert other[0] == 2
    assert "unfinished run of other settings" in other[2]
    resumed = pela("finetune", recipe, "--dense", "--resume", *long)
    assert resumed[0] == 0
    weights = (here / "runs/tiny/dense/model.safetensors").read_bytes()
    assert pela("finetune", recipe, "--dense", *long)[0] == 0
    assert (here / "runs/tiny/dense/model.safetensors").read_bytes() == weights


def test_flags_win_over_the_recipe(pela, recipe, here):
    pela("finetune", recipe, "--dense")
    done = document(pela("decompose", recipe, "--ratio", "0.9", "--policy", "uniform", "--json"))
    assert (done["requested"], done["policy"]) == ("0.9", "uniform")
    assert done["artefact"] == "runs/tiny/decompose"
    stored = json.loads((here / "runs/tiny/decompose/pela.json").read_text())
    assert stored["history"][-1]["recipe"]["decompose"]["ratio"] == "0.9"


@pytest.mark.parametrize("command", ["pretrain", "finetune", "run"])
@pytest.mark.parametrize(("setting", "result"), [(None, "1"), ("0", "0")])
def test_training_asks_for_huge_pages_unless_the_environment_does_not(
    pela, here, monkeypatch, command, setting, result
):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    if setting is not None:
        monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", setting)
    environment = dict(os.environ)
    monkeypatch.setattr(os, "environ", environment)
    pela(command, "r.toml", "--set", "seed=1")
    assert environment["THP_MEM_ALLOC_ENABLE"] == result
