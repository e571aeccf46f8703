"""What only a GPU can show: AMP with a scaler, compiled blocks, DDP and FSDP under a launcher.

Skipped where there is none.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from device_cases import CASES
from launched import by_torchrun

import pelacli
from pelacli.artefact import loading
from pelacli.errors import PelaError
from pelacli.models import opening
from pelacli.recipe import layout
from pelacli.recipe.schema import Recipe
from pelacli.steps import pipeline
from pelacli.train import healing as train_healing

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 3, "num_heads": 3}
DIGITS = {"dataset": "digits", "batch_size": 64, "image_size": 32, "augment": {"none": True}}
TEACHER = {"epochs": 15, "lr": 1e-3, "warmup_epochs": 1}
HEALING = {
    "steps": 30, "epochs": 2, "lr": 3e-4, "warmup_epochs": 0, "ema": 0.9, "clip_grad": 1.0,
    "log_every": 1, "save_every": 10,
    "loss": {"task": 1.0, "feature": 1.0, "logits": 1.0, "perturbation": 1.0},
}  # fmt: skip
# Uniform and plain, which leaves healing something to do.
CUT = {"ratio": "0.4", "scope": "layers", "policy": "uniform"}


def recipe(teacher: str, output: Path, device: str = "cuda", **healing) -> Recipe:
    return Recipe(
        model=teacher, output=str(output), device=device, data=DIGITS, decompose=CUT,
        pretrain=HEALING | healing,
    )  # fmt: skip


def fork(exact: Path, made: Recipe) -> Recipe:
    """Let the recipe's healing begin with the factors of another run."""
    Path(made.output).mkdir()
    (Path(made.output) / "decompose").symlink_to(exact / "decompose")
    return made


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    """A small ViT that has learned the digits on the GPU."""
    made = Recipe(
        model="vit_tiny_patch16_224", weights="random", model_args=TINY, num_classes=10,
        output=str(tmp_path_factory.mktemp("teacher")), device="cuda", teacher=TEACHER, data=DIGITS,
    )  # fmt: skip
    pipeline.run(made)
    return layout.dense(made)


@pytest.fixture(scope="module")
def exact(teacher, tmp_path_factory) -> Path:
    """Decomposed and healed on the GPU in float32."""
    folder = tmp_path_factory.mktemp("exact")
    pipeline.run(recipe(teacher, folder))
    return folder


def logits(path: Path) -> torch.Tensor:
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return loading.load(path).module(images)


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def course(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [line["losses"] for line in lines if "losses" in line]


def test_a_module_on_the_gpu_is_decomposed_and_stays_there(tmp_path):
    """From Python, where the caller's model and batches are wherever they are."""
    opened = opening.open("vit_tiny_patch16_224", weights="random", model_args=TINY, num_classes=10)
    here, there = opened.module, copy.deepcopy(opened.module).cuda()
    batches = list(torch.randn(4, 16, 3, 32, 32))
    plan = pelacli.decompose(here, ratio=0.5, batches=batches)
    again = pelacli.decompose(there, ratio=0.5, batches=[batch.cuda() for batch in batches])
    assert again.ranks() == plan.ranks()
    assert {p.device.type for p in there.parameters()} == {"cuda"}
    pelacli.save(there, tmp_path / "saved")
    assert {p.device.type for p in there.parameters()} == {"cuda"}
    loaded = pelacli.load(tmp_path / "saved")
    with torch.no_grad():
        want = here.eval()(batches[0])
        assert gap(there.eval()(batches[0].cuda()).cpu(), want) < 1e-4
        assert torch.equal(loaded(batches[0]), want)


def test_healing_follows_the_cpu(teacher, exact, tmp_path):
    """The same factors healed on both: the losses of every step."""
    there = fork(exact, recipe(teacher, tmp_path / "cpu", device="cpu"))
    pipeline.run(there)
    ours, theirs = (course(folder / "pretrain") for folder in (exact, tmp_path / "cpu"))
    assert len(ours) == len(theirs) == 30
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize(("precision", "near"), [("bf16", 0.02), ("fp16", 0.1)])
def test_half_precision_heals_alike(teacher, exact, tmp_path, precision, near):
    """The perturbation is float32 in any precision; fp16 needs its scaler to get through, which
    skips updates until it has found its scale. On an H100: 0.003 and 0.048."""
    made = fork(exact, recipe(teacher, tmp_path / "half", precision=precision))
    pipeline.run(made)
    ours, theirs = (course(folder / "pretrain") for folder in (tmp_path / "half", exact))
    found = gap(logits(tmp_path / "half" / "pretrain"), logits(exact / "pretrain"))
    assert ours[0]["perturbation"] == pytest.approx(theirs[0]["perturbation"], rel=1e-5)
    assert found < near
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=0.1, abs=5e-3)
    assert sum(theirs[-1].values()) < 0.9 * sum(theirs[0].values())


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_a_stopped_run_goes_on(teacher, exact, tmp_path, monkeypatch, precision):
    """The scaler's state travels in the checkpoint."""
    whole = fork(exact, recipe(teacher, tmp_path / "whole", precision=precision))
    pipeline.run(whole)
    stopped = fork(exact, recipe(teacher, tmp_path / "stopped", precision=precision))
    losses = train_healing.Stage.losses

    def stopping(self, student, batch, done=1.0):
        if done >= 0.5:
            raise PelaError("the power is gone")
        return losses(self, student, batch, done)

    with monkeypatch.context() as patch:
        patch.setattr(train_healing.Stage, "losses", stopping)
        with pytest.raises(PelaError, match="power is gone"):
            pipeline.run(stopped)
    pipeline.run(stopped)
    found = gap(logits(tmp_path / "stopped/pretrain"), logits(tmp_path / "whole/pretrain"))
    assert found < 1e-4


def test_compiled_blocks_heal_alike(teacher, exact, tmp_path):
    made = fork(exact, recipe(teacher, tmp_path / "compiled", compile=True))
    pipeline.run(made)
    found = gap(logits(tmp_path / "compiled/pretrain"), logits(exact / "pretrain"))
    assert found < 1e-2


@pytest.mark.parametrize(
    ("kind", "variables"),
    [("MULTI_GPU", {}), ("FSDP", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"})],
)
def test_launched_on_one_gpu(teacher, exact, tmp_path, kind, variables):
    """Under torchrun, with NCCL: a process group of one gives the weights of none."""
    made = fork(exact, recipe(teacher, tmp_path / "run"))
    (tmp_path / "recipe.json").write_text(made.model_dump_json(exclude_unset=True))
    launch, environment = by_torchrun(__file__, tmp_path, 1, **variables)
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kind").read_text() == kind
    found = gap(logits(tmp_path / "run" / "pretrain"), logits(exact / "pretrain"))
    assert found < 1e-4


def child(folder: Path) -> None:
    """What a launched process does."""
    from accelerate.state import AcceleratorState

    pipeline.run(Recipe.model_validate_json((folder / "recipe.json").read_text()))
    (folder / "kind").write_text(AcceleratorState().distributed_type.value)


if __name__ == "__main__":
    child(Path(sys.argv[1]))


@pytest.mark.parametrize("name", ["net", "language model"])
@pytest.mark.parametrize("samples", [False, True])
def test_a_gpu_plans_and_factorises_as_the_cpu_does(name, samples):
    """The same ranks, and the same layers but for the rounding of float32 products."""
    torch.manual_seed(0)
    make, batches = CASES[name]
    on_cpu = make()
    on_gpu = copy.deepcopy(on_cpu).cuda()
    given = batches() if samples else None
    plans = [pelacli.decompose(m, ratio=0.7, batches=given) for m in (on_cpu, on_gpu)]
    assert plans[0].ranks() == plans[1].ranks()
    assert {p.device.type for p in on_gpu.parameters()} == {"cuda"}
    for layer in plans[0].ranks():
        one, other = (m.get_submodule(layer) for m in (on_cpu, on_gpu))
        (down, up), (down_too, up_too) = one.factors(), other.factors()
        product = (up_too @ down_too).detach().cpu()
        torch.testing.assert_close(up @ down, product, atol=1e-2, rtol=1e-2)


def test_the_command_calibrates_on_the_gpu_as_on_the_cpu(pela, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ranks = []
    for device in ("cpu", "cuda"):
        code, out, err = pela(
            "decompose", "vit_tiny_patch16_224", "--weights", "random", "--ratio", "0.5",
            "--calibrate", "digits", "--samples", 32, "--device", device, "-o", device, "--json",
        )  # fmt: skip
        assert code == 0, err
        ranks.append([layer["rank"] for layer in json.loads(out)["layers"]])
    assert ranks[0] == ranks[1]
