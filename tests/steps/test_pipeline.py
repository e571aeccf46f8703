"""`pela run`: a step is done if its artefact was made from what would be read now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import transformers

import pelacli
from pelacli.errors import StoppedError
from pelacli.manifest import digests
from pelacli.manifest import document as manifest_document
from pelacli.recipe.schema import Recipe
from pelacli.recipe.step import step_of
from pelacli.steps import pipeline

FOLDER, FILE = "source", "source/model.safetensors"


def write_vit(seed: int) -> None:
    """A plain local model in timm's layout, with other weights for another seed."""
    torch.manual_seed(seed)
    network = timm.create_model("test_vit", num_classes=7)
    timm.models.save_for_hf(network, FOLDER, safe_serialization=True)


def write_shards(seed: int) -> None:
    """The same in transformers' layout, its weights in several files."""
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 2, "vocab_size": 50, "max_position_embeddings": 16}
    config = transformers.BertConfig(**size)
    transformers.BertModel(config).save_pretrained(FOLDER, max_shard_size="20KB")
    assert len(list(Path(FOLDER).glob("*.safetensors"))) > 1


def recipe(**top: object) -> Recipe:
    document = {"output": "run", "decompose": {"policy": "uniform"}} | top
    return Recipe.model_validate(document)


def skipped(spec: Recipe) -> bool:
    """Run the recipe; whether its only step was done already."""
    [step] = pipeline.run(spec).steps
    return step.skipped


@pytest.mark.parametrize(
    ("write", "top"),
    [
        (write_vit, {"model": FILE, "arch": "test_vit"}),
        (write_vit, {"model": FOLDER}),
        (write_vit, {"model": "test_vit", "weights": FILE}),
        (write_vit, {"model": "test_vit", "weights": FOLDER}),
        (write_shards, {"model": FOLDER}),
    ],
    ids=["file", "directory", "weights-file", "weights-directory", "shards"],
)
def test_a_step_is_done_again_when_the_weights_of_its_plain_source_change(here, write, top):
    for seed in (0, 1, 0):
        write(seed)
        assert not skipped(recipe(**top))
        assert skipped(recipe(**top))


def test_a_step_is_done_again_when_a_newer_step_lies_below_its_source(here):
    """A run directory stands for its last step."""
    for seed, step in enumerate(("dense", "finetune")):
        torch.manual_seed(seed)
        pelacli.save(timm.create_model("test_vit", num_classes=7), Path("base") / step)
        assert not skipped(recipe(model="base"))
        assert skipped(recipe(model="base"))
        last = manifest_document.read(Path("run/decompose")).history[-1]
        assert last.inputs == digests.weights_digest(Path("base") / step)


def test_a_source_that_is_not_here_counts_as_it_was_recorded(here):
    write_vit(0)
    assert not skipped(recipe(model=FOLDER))
    Path(FOLDER).rename("elsewhere")
    assert skipped(recipe(model=FOLDER))
    named = recipe(model="test_vit", weights="random", output="named")
    assert not skipped(named)
    assert skipped(named)


def test_other_settings_are_noticed_without_reading_the_weights(here, monkeypatch):
    write_vit(0)
    assert not skipped(recipe(model=FOLDER))
    monkeypatch.setattr(digests, "digest_file", lambda path: pytest.fail(f"{path} is read"))
    other = recipe(model=FOLDER, decompose={"ratio": "2/3"})
    assert not pipeline.is_done(step_of(other, "decompose"))


def test_a_recipe_that_is_done_loads_no_torch(here):
    write_vit(0)
    Path("r.toml").write_text(f'model = "{FOLDER}"\noutput = "run"\n[decompose]\nratio = 0.5\n')
    script = (
        "import sys\nfrom pelacli.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "print(code, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, "run", "r.toml"]
    for torch_is_loaded in (True, False):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == f"0 {torch_is_loaded}", done.stderr


@pytest.mark.parametrize("force", [False, True])
def test_a_stopped_run_says_which_command_goes_on(monkeypatch, tmp_path, force):
    """``pela run`` goes on by itself, and has no ``--resume``; its ``--force`` would begin anew."""

    def stop(*_):
        raise StoppedError("stopped at step 1 of 2", "continue with --resume")

    monkeypatch.setattr(pipeline, "_do", stop)
    step = step_of(recipe(model="test_vit", output=str(tmp_path / "run")), "decompose")
    with pytest.raises(StoppedError) as stopped:
        pipeline._outcome(step, force, is_known_done=False)
    without = " without --force" if force else ""
    remedy = f"run the same command again{without} to go on"
    assert str(stopped.value) == f"stopped at step 1 of 2; {remedy}"
