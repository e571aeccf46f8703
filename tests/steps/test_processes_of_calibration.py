"""Two processes that share the calibration samples come to the plan and the layers of one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from generated_text import FILLERS, KEYS, save_model
from json_output import document
from launched import by_torchrun
from safetensors.torch import load_file

import pelacli.__main__
from pelacli.factorize import batches, refit
from pelacli.factorize.observation import LayerSums
from pelacli.system import processes

VIT = (
    "vit_tiny_patch16_224", "--weights", "random", "--calibrate", "digits", "--samples", "144",
    "--set", "model_args={img_size=16,patch_size=8,embed_dim=32,depth=2,num_heads=2}",
)  # fmt: skip
# One batch for two processes; in the calibration of texts each has some.
FEW = tuple("24" if word == "144" else word for word in VIT)
LM = ("lm", "--calibrate", "a.txt", "--samples", "256")
CALIBRATED = {"vit": VIT, "few": FEW, "lm": LM, "plain": ("lm",)}
COMMANDS = {name: ("decompose", *args, "--ratio", "0.6", "--scope", "layers", "--json")
            for name, args in CALIBRATED.items()}  # fmt: skip


def child(folder: Path) -> None:
    """What each of the two processes does."""
    os.chdir(folder)
    for name, command in COMMANDS.items():
        sys.argv = ["pela", *command, "-o", f"{name}-2"]
        with contextlib.suppress(SystemExit):
            pelacli.__main__.main()


def texts(folder: Path) -> None:
    save_model("llama", "CausalLM", folder / "lm")
    generator = torch.Generator().manual_seed(0)
    words = [*FILLERS, *KEYS]
    draws = torch.randint(len(words), (300, 14), generator=generator)
    (folder / "a.txt").write_text("\n".join(" ".join(words[i] for i in row) for row in draws))


def test_two_processes_plan_and_factorise_as_one_does(pela, here):
    texts(here)
    launch, environment = by_torchrun(__file__, here, 2, OMP_NUM_THREADS="1")
    running = subprocess.Popen(
        launch, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    one = {name: document(pela(*c, "-o", f"{name}-1")) for name, c in COMMANDS.items()}
    said, stderr = running.communicate(timeout=300)
    assert running.returncode == 0, stderr
    assert said.count('"artefact"') == len(COMMANDS)  # the second process says nothing
    for name, done in one.items():
        assert done.get("corrected", False) is (
            name != "plain"
        )  # which one process does, while one waits
        mine, theirs = (load_file(here / f"{name}-{n}" / "model.safetensors") for n in (1, 2))
        assert {k: t.shape for k, t in mine.items()} == {k: t.shape for k, t in theirs.items()}
        for down in (k for k in mine if k.endswith("down.weight")):
            up = down.removesuffix("down.weight") + "up.weight"
            want, got = (t[up].double() @ t[down].double() for t in (mine, theirs))
            assert (got - want).norm() < 1e-3 * want.norm(), down


@pytest.mark.parametrize("narrow_in", [False, True])
@pytest.mark.parametrize("size", [1.0, 1e20])
def test_sums_of_two_parts_are_those_of_the_whole(narrow_in, size):
    """Also where the parts lie around other shifts, and are scaled otherwise."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn((8, 5) if narrow_in else (5, 8), generator=generator)
    x = torch.randn(60, W.shape[1], generator=generator) + 3
    x[40:] = (x[40:] + 2) * size
    g = torch.randn(60, W.shape[0], generator=generator)
    g[40:] *= size
    w = torch.rand(60, generator=generator) + 0.5

    def sums(*rows: slice) -> LayerSums:
        made = LayerSums(narrow_in)
        for part in rows:
            made.add_backward(g[part], g[part] @ W)
            made.add_forward(x[part], None if narrow_in else x[part] @ W.T, w[part])
        return made

    joined = sums(slice(0, 40))
    joined.add(sums(slice(40, 60)))
    # In the other order the whole is scaled for its largest values.
    one, other = (s.moments(6, 2, W.shape, None, centred=True)
                  for s in (joined, sums(slice(40, 60), slice(0, 40))))  # fmt: skip
    assert one.tokens == other.tokens
    for name in ("mean", "near", "far"):
        a, b = (getattr(m, name) for m in (one, other))
        assert torch.allclose(a.tril(), b.tril(), rtol=1e-4) if a.ndim == 2 else True
    assert one.near_level == pytest.approx(other.near_level)
    assert one.far_level == pytest.approx(other.far_level)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_process_without_a_batch_walks_along_and_counts_nothing(monkeypatch, rank):
    monkeypatch.setattr(processes, "rank_and_size", lambda: (rank, 3))
    assert batches.share([0, 1, 2, 3, 4]) == batches.Share([[0, 3], [1, 4], [2]][rank])
    assert batches.share([0, 1]) == batches.Share([[0], [1], [1]][rank], counts=rank < 2)
    assert batches.share([]) == batches.Share([])


def test_samples_that_go_different_ways_are_refused_in_the_correction(monkeypatch):
    """Their regressions can't be added up, and the processes would wait for each other."""
    monkeypatch.setattr(processes, "all_gather", lambda name: [name, "other"])
    with pytest.raises(pelacli.RequestError, match="run decompose without the launcher"):
        refit._meet("mine")


if __name__ == "__main__":
    child(Path(sys.argv[1]))
