"""What a step is resolved to from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pelacli.errors import RequestError
from pelacli.recipe.schema import Recipe, resolved
from pelacli.recipe.step import NamedTask, Opening, step_of, steps_of

DIGITS = {"dataset": "digits"}


def recipe(**document: Any) -> Recipe:
    return Recipe.model_validate({"model": "vit_base", "output": "run"} | document)


@pytest.mark.parametrize(
    ("sections", "sources"),
    [
        (["decompose"], {"decompose": "vit_base"}),
        (["finetune"], {"finetune": "vit_base"}),
        (["decompose", "finetune"], {"decompose": "vit_base", "finetune": "run/decompose"}),
        (
            ["finetune", "pretrain", "decompose", "teacher"],  # they run in another order
            {
                "teacher": "vit_base",
                "decompose": "run/dense",
                "pretrain": "run/decompose",
                "finetune": "run/pretrain",
            },
        ),
    ],
)
def test_each_step_starts_from_the_nearest_earlier_one(sections, sources):
    steps = steps_of(recipe(data=DIGITS, **{name: {} for name in sections}))
    assert {step.name: step.source for step in steps} == sources
    assert [step.name for step in steps] == list(sources)


def test_the_dense_model_is_the_one_that_the_recipe_trains_or_else_names():
    named = recipe(data=DIGITS, pretrain={})
    assert step_of(named, "pretrain").dense == step_of(named, "pretrain").model == "vit_base"
    trained = recipe(data=DIGITS, teacher={}, pretrain={})
    assert step_of(trained, "pretrain").dense == "run/dense"


def test_what_the_section_says_goes_before_what_the_recipe_says():
    own = {"data": {"dataset": "own"}, "task": "vqa", "task_args": {"answers": 3}}
    spec = recipe(data=DIGITS, task="retrieval", task_args={"top": 1}, finetune=own, pretrain={})
    finetune, pretrain = step_of(spec, "finetune"), step_of(spec, "pretrain")
    assert (finetune.data.dataset, finetune.task) == ("own", NamedTask("vqa", {"answers": 3}))
    assert (pretrain.data.dataset, pretrain.task) == ("digits", NamedTask("retrieval", {"top": 1}))


def test_a_task_that_nobody_named_is_marked_as_the_default():
    assert step_of(recipe(), "decompose").task == NamedTask("image-classification", {}, True)
    named = recipe(task="image-classification")
    assert step_of(named, "decompose").task == NamedTask("image-classification", {}, False)
    section = {"max_drop": 1.0, "data": DIGITS, "task": "retrieval"}
    assert not step_of(recipe(decompose=section), "decompose").task.is_default


def test_decompose_calibrates_on_its_own_samples_by_the_recipes_task():
    judged = {"max_drop": 1.0, "task": "vqa", "data": {"dataset": "judged"}}
    for calibrate, dataset in (("train", "digits"), ("texts.txt", "texts.txt")):
        section = judged | {"calibrate": calibrate}
        step = step_of(recipe(data=DIGITS, task="retrieval", decompose=section), "decompose")
        assert step.calibration is not None
        assert step.calibration.data.dataset == dataset
        assert step.calibration.task == NamedTask("retrieval", {})
        assert (step.data.dataset, step.task.name) == ("judged", "vqa")
    assert step_of(recipe(data=DIGITS), "decompose").calibration is None


def test_the_rest_comes_from_the_top_of_the_recipe():
    top = {
        "weights": "random", "arch": "test_vit", "model_args": {"depth": 2}, "num_classes": 3,
        "seed": 5, "device": "cpu", "data": DIGITS,
    }  # fmt: skip
    spec = recipe(pretrain={"epochs": 2}, **top)
    step = step_of(spec, "pretrain")
    assert step.settings is spec.pretrain
    assert step.opening == Opening("random", "test_vit", {"depth": 2}, 3, 5)
    assert (step.output, step.seed, step.device) == (Path("run/pretrain"), 5, "cpu")
    assert step.document == resolved(spec)


def test_a_section_that_the_recipe_lacks_is_named():
    with pytest.raises(RequestError, match=r"the recipe has no \[pretrain\] section"):
        step_of(recipe(), "pretrain")
    assert step_of(recipe(), "decompose").settings.budget == 0.5  # its defaults do
