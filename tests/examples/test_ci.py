"""The example for continuous integration: it cuts, heals, judges and comments."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import example_scripts
import pytest
import timm
import yaml

import pelacli
from pelacli.recipe.schema import Recipe

CI = example_scripts.EXAMPLES / "ci"
RESULT = {
    "params": 180_414, "flops": 50_836_872, "metrics": {"accuracy": 41.3889, "loss": 1.89},
    "latency_ms": 27.3,
    "baseline": {
        "params": 300_746, "flops": 75_143_936, "metrics": {"accuracy": 42.2778, "loss": 1.9},
        "latency_ms": 24.0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def comment():
    return example_scripts.load("ci/comment.py").comment


def test_the_comment_has_both_models_figures_and_the_verdict(comment):
    passed = comment(RESULT, "| kind |\n|---|\n", 0)
    assert "good enough" in passed.splitlines()[0]
    assert "| parameters | 300,746 | 180,414 | 60.0 % |" in passed
    assert "| accuracy | 42.28 | 41.39 | -0.8889 |" in passed
    assert "| latency, ms per batch | 24 | 27.3 | 114 % |" in passed
    assert "\n\n| kind |\n|---|\n\n</details>" in passed  # a table in HTML wants empty lines
    assert "lost too much" in comment(RESULT, "", 3).splitlines()[0]


def test_figures_that_could_not_be_had_are_left_out(comment):
    unknown = RESULT | {"flops": None, "latency_ms": None}
    text = comment(unknown, "", 0)
    assert "FLOPs" not in text
    assert "latency" not in text


def test_the_recipe_has_what_the_script_needs():
    recipe = Recipe.model_validate(tomllib.loads((CI / "recipe.toml").read_text(encoding="utf-8")))
    assert recipe.decompose
    assert recipe.pretrain
    assert recipe.eval.max_drop


def test_the_workflow_calls_files_that_are_there():
    workflow = yaml.safe_load((CI / "github-workflow.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    named = {name for line in commands for name in re.findall(r"\bci/([\w.]+)", line)}
    assert named == {"compress.sh", "recipe.toml"}
    assert all((CI / name).is_file() for name in named)


@pytest.mark.slow
@pytest.mark.parametrize(("allowed", "code", "says"), [(100, 0, "good enough"), (-100, 3, "lost")])
def test_the_script_ends_with_the_gates_code_and_a_comment(here, allowed, code, says):
    dense = timm.create_model("test_vit", num_classes=10, img_size=32)
    pelacli.save(dense, "dense")
    text = (CI / "recipe.toml").read_text(encoding="utf-8")
    for old, new in (
        ('"vit_base"', '"dense"'), ('"images" ', '"digits"'),
        ("batch_size = 64", "image_size = 32"),
        ('"train"\n', '"train"\nsamples = 16\n'), ("epochs = 1", "steps = 2\nlr = 1e-5"),
        ("max_drop = 0.6", f"max_drop = {allowed}"),
    ):  # fmt: skip
        assert old in text, old
        text = text.replace(old, new)
    Path("recipe.toml").write_text(text)
    done = script(here, "recipe.toml", "build/compressed", "comment.md")
    assert done.returncode == code, done.stderr
    written = Path("comment.md").read_text()
    assert says in written.splitlines()[0]
    assert "| parameters |" in written
    assert "blocks.*.mlp.fc1" in written


@pytest.mark.slow
def test_the_script_stops_at_a_wrong_recipe_with_code_2(here):
    Path("recipe.toml").write_text('model = "vit_base"\noutput = "x"\n[decompose]\nrato = 0.5\n')
    done = script(here, "recipe.toml", "x", "comment.md")
    assert done.returncode == 2
    assert "did you mean 'ratio'" in done.stderr
    assert not Path("comment.md").exists()


def script(here, *arguments):
    """Run compress.sh, where `pela` and `python` are those of this test."""
    folder = here / "bin"
    folder.mkdir()
    for name, call in (("pela", '-m pelacli "$@"'), ("python", '"$@"')):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {call}\n')
        (folder / name).chmod(0o755)
    paths = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(CI.parents[1])}
    return subprocess.run(
        [CI / "compress.sh", *arguments], env=os.environ | paths, capture_output=True, text=True
    )
