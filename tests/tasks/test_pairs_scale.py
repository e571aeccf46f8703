"""Retrieval over two processes: the figures, and the contrast's gradients, are those of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pair_world as world
import pytest
import torch
from launched import by_torchrun

from pelacli.data.loader import loader
from pelacli.models import opening
from pelacli.models.pairs import losses
from pelacli.models.pairs import view as pairs_view
from pelacli.recipe.data import Augment, Data
from pelacli.system import processes
from pelacli.tasks import base, registry

KINDS = ["CLIPModel", "BlipForImageTextRetrieval", "ViltForImageAndTextRetrieval"]


def figures(folder: Path) -> dict[str, dict[str, float]]:
    data = Data(dataset=str(folder / "data"), augment=Augment(none=True))
    task, found = registry.get("retrieval", {"k_test": 5}), {}
    for kind in KINDS:
        model = opening.open(str(folder / kind))
        batches = loader(task.open(data, "val", inputs=model.inputs), batch_size=7)
        found[kind] = base.evaluate(model.module, batches, task)
    return found


def gradient(rank: int, world_size: int) -> torch.Tensor:
    """Of the contrast of twelve pairs, of which each process has a part, by a shared weight; the
    mean over processes, as DDP takes it."""
    draw = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 12, 4, generator=draw)
    ids = torch.arange(12) // 2
    weight = torch.eye(4).requires_grad_()
    part = slice(rank * 12 // world_size, (rank + 1) * 12 // world_size)

    class Model(pairs_view.PairModel):
        def similarity(self, images, texts):
            return images @ texts.T

    view = Model(torch.nn.Identity())
    view.contrast(images[part] @ weight, texts[part] @ weight.T, ids[part]).backward()
    parts = losses.gathered(weight.grad[None])
    return parts.mean(0)


@pytest.mark.slow
def test_two_processes_give_the_figures_and_gradients_of_one(tmp_path):
    for kind in KINDS:
        world.model(kind, tmp_path / kind)
    world.captions(tmp_path / "data", 1, name="val")
    file = tmp_path / "data" / "val.json"
    file.write_text(json.dumps(json.loads(file.read_text())[:11]))
    launch, environment = by_torchrun(__file__, tmp_path, 2, OMP_NUM_THREADS="1")
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        two = json.loads((tmp_path / f"{rank}.json").read_text())
        for kind, found in figures(tmp_path).items():
            assert two["figures"][kind] == pytest.approx(found), kind
        assert two["gathered"] == ["a", "bb"]
        assert two["totals"] == [3, [[3, 1], [1, 3]]]
        assert two["alone"] == [[rank], rank]
        assert torch.allclose(torch.tensor(two["gradient"]), gradient(0, 1), atol=1e-6)


if __name__ == "__main__":
    state = processes.join("cpu")
    folder = Path(sys.argv[1])
    rank = state.process_index
    result = {"figures": figures(folder), "gradient": gradient(rank, 2).tolist()}
    result["gathered"] = processes.all_gather("ab"[rank] * (rank + 1))
    result["totals"] = [processes.total(rank + 1), processes.total(torch.eye(2) + rank).tolist()]
    with processes.alone():
        result["alone"] = [processes.all_gather(rank), processes.total(rank)]
    (folder / f"{rank}.json").write_text(json.dumps(result))
    state.wait_for_everyone()
