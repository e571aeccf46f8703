"""Two processes give the weights of one at the same global batch: DDP, and FSDP 2 in shards."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import torch
import transformers
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from launched import by_torchrun
from safetensors.torch import load_file
from torch import nn
from torch.distributed import HashStore
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import pelacli
import pelacli.__main__
from pelacli.data.dataset import open_dataset
from pelacli.data.loader import loader
from pelacli.errors import PelaError, RequestError
from pelacli.lowrank.weight import gathered
from pelacli.manifest import document
from pelacli.models import inputs as models_inputs
from pelacli.models import opening
from pelacli.recipe.data import Augment
from pelacli.recipe.training import Pretrain
from pelacli.system import processes
from pelacli.tasks import base, registry
from pelacli.train import acceleration, checkpoint, weights
from pelacli.train.criterion import Criterion
from pelacli.train.healing import Stage
from pelacli.train.loop import Objective, RunOptions, fit

TINY = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 24, "depth": 3, "num_heads": 2}
# SGD, because Adam's first steps are as long for a gradient of rounding noise as for any other.
SECTION = {
    "opt": "sgd", "lr": 0.1, "min_lr": 1e-3, "epochs": 2, "accumulate": 2, "clip_grad": 1.0,
    "ema": 0.6, "factor_lr": 0.5, "factor_decay": "product", "taps_over": 0.5, "log_every": 1,
    "loss": {"task": 1.0, "feature": 1.0, "logits": 0.5, "perturbation": 1.0},
}  # fmt: skip
ACCELERATOR = acceleration.accelerator
MIXED = Augment(scale=(0.7, 1.0), hflip=0.0, color_jitter=0.2, mixup=0.5, cutmix=0.5)


def heal(
    output: Path, stop_at: int | None = None, resume: bool = False, form: str = "pivots", **changed
):
    """Eight steps of healing a tiny ViT at half its size; returns the student."""
    teacher = opening.open("vit_tiny", weights="random", model_args=TINY, num_classes=10)
    for index, p in enumerate(teacher.module.parameters()):  # a fresh ViT is all but constant
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(index))
        p.data.add_(0.1 * noise)
    student = copy.copy(teacher)
    student.module = copy.deepcopy(teacher.module)
    pelacli.decompose(student.module, ratio="0.5", policy="uniform", form=form)
    teacher.module.eval().requires_grad_(False)
    section = Pretrain(**(SECTION | changed))
    task = registry.get("image-classification")
    stage = Stage(section, student, teacher, task, labelled=True)
    digits = open_dataset("digits", "train", inputs=teacher.inputs, training=True, augment=MIXED)
    held_out = loader(open_dataset("digits", "val", inputs=teacher.inputs), batch_size=24,
                      num_classes=10, limit=25)  # fmt: skip
    batches = loader(digits, batch_size=16, shuffle=True, drop_last=True, num_classes=10,
                     augment=MIXED, limit=128)  # fmt: skip
    done, kinds = SimpleNamespace(steps=0), set()

    def losses(module, batch, done):
        kinds.update(type(p).__name__ for p in module.parameters())
        return stage.losses(module, batch, done)

    def advance(n=1, **fields):
        done.steps += n
        if done.steps == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    objective = Objective(
        losses, lambda m: base.evaluate(m, held_out, task, "cpu", 10), Criterion(("accuracy",))
    )
    progress = SimpleNamespace(advance=advance, start_at=advance)
    fit(student.module, objective, batches, section, RunOptions(3, "cpu", output, resume, progress))
    assert kinds == {"DTensor" if acceleration.accelerator is not ACCELERATOR else "Parameter"}
    return student.module


def sharded(version=2, **options):
    """As the launcher would make it with FSDP; on CPUs accelerate itself knows DDP only."""

    def make(*args):
        made = ACCELERATOR(*args)
        made.state.distributed_type = DistributedType.FSDP
        made.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=version, **options)
        return made

    return make


RECIPE = """
model = "vit_tiny_patch16_224"
weights = "random"
model_args = { img_size = 16, patch_size = 8, embed_dim = 32, depth = 2, num_heads = 2 }
num_classes = 10
output = "run"
device = "cpu"
data = { dataset = "digits", batch_size = 32 }
decompose = { ratio = "0.6", calibrate = "train", samples = 48 }
pretrain = { steps = 3 }
finetune = { steps = 2 }
eval = { latency = false }
"""


def child(folder: Path) -> None:
    """What each of the two processes does."""
    first = os.environ["RANK"] == "0"
    os.chdir(folder)
    sys.argv = ["pela", "run", "recipe.toml", "--json"]
    with contextlib.suppress(SystemExit):
        pelacli.__main__.main()

    def keep(name, module):
        if first:
            torch.save(module.state_dict(), folder / f"{name}.pt")

    keep("ddp", heal(folder / "ddp"))
    acceleration.accelerator = sharded()
    try:
        heal(folder / "fsdp", stop_at=None if first else 3)  # one that is asked stops both
    except PelaError as error:
        (folder / f"message-{os.environ['RANK']}").write_text(str(error))
    if first:
        shutil.copytree(folder / "fsdp", folder / "moved")
    keep("fsdp", heal(folder / "fsdp", resume=True))


def course(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def test_two_processes_give_the_weights_of_one(tmp_path):
    launch, environment = by_torchrun(__file__, tmp_path, 2, OMP_NUM_THREADS="1")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(launch, env=environment, **pipes)
    one = heal(tmp_path / "one").state_dict()
    said, stderr = running.communicate(timeout=300)
    assert running.returncode == 0, stderr
    # The command line: one document, one artefact of each step, no step twice.
    steps = json.loads(said)["steps"]
    assert [(step["step"], step["skipped"]) for step in steps] == [
        ("decompose", False), ("pretrain", False), ("finetune", False),
    ]  # fmt: skip
    for step in steps:
        assert len(document.read(tmp_path / step["artefact"]).history) > 0
    # One process factorises, and sees all of the samples.
    made = document.read(tmp_path / "run" / "decompose")
    assert made.history[-1].metrics["samples"] == 48
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "decompose", "finetune", "pretrain",
    ]  # fmt: skip
    for name in ("ddp", "fsdp"):
        two = torch.load(tmp_path / f"{name}.pt")
        assert list(two) == list(one)
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5, msg=f"{name}: {key}")
        for ours, theirs in zip(course(tmp_path / name), course(tmp_path / "one"), strict=True):
            assert ours["step"] == theirs["step"]
            for figures in ("losses", "metrics"):
                if figures in theirs:
                    assert ours[figures] == pytest.approx(theirs[figures], rel=1e-3, abs=1e-5)
    for rank in (0, 1):
        assert "stopped at step 3 of 8" in (tmp_path / f"message-{rank}").read_text()
    # What two began in shards, one can end.
    for key, value in heal(tmp_path / "moved", resume=True).state_dict().items():
        torch.testing.assert_close(value, one[key], rtol=1e-4, atol=1e-5, msg=f"moved: {key}")
    # A checkpoint of shards is that of one process, file by file.
    last, other = (checkpoint.steps(tmp_path / name)[-1] for name in ("fsdp", "one"))
    for file in ("model.safetensors", "ema.safetensors"):
        saved, wanted = load_file(last / file), load_file(other / file)
        assert list(saved) == list(wanted)
        for key in wanted:
            torch.testing.assert_close(saved[key], wanted[key], rtol=1e-4, atol=1e-5)


def averaged(output: Path) -> dict[str, torch.Tensor]:
    """Four steps of a tiny network with running statistics: the result, what its average was when
    it was evaluated, and what the last checkpoint holds of the average."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    inputs = models_inputs.ImageInput((1, 8, 8), (0.5,), (0.5,))
    digits = open_dataset("digits", "train", inputs=inputs)
    evaluated = {}

    def losses(module, batch, done):
        return {"task": nn.functional.cross_entropy(module(batch["inputs"]), batch["labels"])}

    def evaluate(module):
        seen = f"evaluated {len(evaluated)} "
        evaluated.update((seen + name, b.clone()) for name, b in module.named_buffers())
        return {}

    section = Pretrain(opt="sgd", lr=0.1, epochs=2, ema=0.6, eval_every=1, result="last")
    batches = loader(digits, batch_size=16, num_classes=10, limit=32)
    options = RunOptions(device="cpu", output=output)
    fit(net, Objective(losses, evaluate), batches, section, options)
    kept = load_file(checkpoint.steps(output)[-1] / "ema.safetensors")
    return net.state_dict() | evaluated | {f"kept {name}": t for name, t in kept.items()}


@pytest.fixture
def group():
    """A process group of one: with it this process can shard weights."""
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    accelerate.state.AcceleratorState._reset_state(True)


def test_the_average_takes_its_buffers_from_the_model_in_shards_too(group, monkeypatch, tmp_path):
    whole = averaged(tmp_path / "whole")
    assert whole["2.num_batches_tracked"] == whole["kept 2.num_batches_tracked"] == 4
    assert whole["evaluated 0 2.num_batches_tracked"] == 2
    monkeypatch.setattr(acceleration, "accelerator", sharded())
    shards = averaged(tmp_path / "shards")
    assert list(shards) == list(whole)
    for name, value in whole.items():
        torch.testing.assert_close(shards[name], value, msg=name)


@pytest.fixture
def mesh():
    """Two processes, of which this one is the first and the other does not exist."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield torch.distributed.init_device_mesh("cpu", (2,))
    torch.distributed.destroy_process_group()


def test_the_gradient_of_a_gathered_factor_lies_in_its_shards(mesh):
    """Also where a part of a larger matrix, as of a layer in pivot form, has other strides."""
    spread = distribute_tensor(torch.ones(9, 15), mesh, [Shard(0)], src_data_rank=None)
    factor = nn.Parameter(spread)
    whole = torch.cat((torch.eye(9), gathered(factor)), 1)
    (whole * torch.arange(216.0).view(9, 24)).sum().backward()
    assert factor.grad.placements == factor.placements
    assert factor.grad.to_local().shape == (5, 15)


@pytest.mark.parametrize(
    ("options", "changed", "message"),
    [
        ({"version": 1}, {}, "launched with FSDP 1: give accelerate --fsdp_version 2"),
        ({"activation_checkpointing": True}, {}, "set checkpointing = true in the recipe"),
        ({"cpu_offload": True}, {}, "launched with fsdp_offload_params"),
        ({}, {"channels_last": True}, "channels_last: FSDP cannot shard it"),
    ],
)
def test_what_cannot_be_sharded_is_refused_with_the_reason(
    tmp_path, monkeypatch, options, changed, message
):
    monkeypatch.setattr(acceleration, "accelerator", sharded(**options))
    try:
        with pytest.raises(RequestError, match=message):
            heal(tmp_path / "x", **changed)
    finally:
        accelerate.state.AcceleratorState._reset_state(True)


def test_images_with_texts_are_not_sharded(monkeypatch):
    """FSDP gathers weights for the whole forward pass, and these models are called in parts."""
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = transformers.CLIPModel(transformers.CLIPConfig(text_config=config, vision_config=config))
    made = sharded()(Pretrain(), "cpu", None)
    try:
        with pytest.raises(RequestError, match="images and texts train under DDP"):
            weights.distribute(made, clip, lambda *_: {}, lambda _: None, False)
    finally:
        accelerate.state.AcceleratorState._reset_state(True)


def test_a_batch_smaller_than_the_number_of_processes_is_refused(monkeypatch):
    digits = open_dataset("digits", "val", inputs=opening.open("vit_tiny", weights="random").inputs)
    monkeypatch.setattr(processes, "rank_and_size", lambda: (0, 8))
    with pytest.raises(RequestError, match=r"digits.*: 4 samples a batch for 8 processes; each"):
        loader(digits, batch_size=4)
    assert len(loader(digits, batch_size=8, limit=20)) == 3
    with pytest.raises(RequestError, match="6 samples a batch for 8"):
        loader(digits, batch_size=8, limit=6)


if __name__ == "__main__":
    child(Path(sys.argv[1]))
