"""What changes the fingerprint of a step, and what leaves it alone."""

from __future__ import annotations

import hashlib
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from pelacli.recipe.decompose import Decompose
from pelacli.recipe.fingerprint import fingerprint
from pelacli.recipe.schema import Recipe, resolved
from pelacli.recipe.step import step_of
from pelacli.recipe.training import Pretrain

OTHER: dict[str, Any] = {  # another value for every key of [pretrain], which has most keys
    "task": "unlabelled",
    "task_args": {"top": 1},
    "data": {"dataset": "other"},
    "epochs": 7,
    "steps": 7,
    "batch_size": 7,
    "opt": "sgd",
    "lr": 0.5,
    "min_lr": 1e-7,
    "warmup_lr": 1e-7,
    "warmup_epochs": 0.5,
    "sched": "step",
    "weight_decay": 0.5,
    "betas": [0.5, 0.5],
    "momentum": 0.5,
    "layer_decay": 0.5,
    "clip_grad": 0.5,
    "factor_lr": 0.5,
    "factor_decay": "product",
    "dropout": True,
    "drop_path": 0.5,
    "drop_path_rule": "constant",
    "ema": 0.5,
    "precision": "bf16",
    "accumulate": 7,
    "channels_last": True,
    "compile": True,
    "checkpointing": True,
    "save_every": 7,
    "keep": 7,
    "result": "best",
    "log_every": 7,
    "eval_every": 7,
    "trackers": ["wandb"],
    "loss": {"feature": 0.5},
    "taps": ["x"],
    "taps_over": 0.5,
    "labels": False,
}
NO_EFFECT = {
    "compile", "checkpointing", "save_every", "keep", "log_every", "eval_every", "trackers",
}  # fmt: skip

OF_READING = {"workers", "on_bad_sample"}  # keys of the data


def digest_of(recipe: Recipe, section: Any, inputs: str) -> str:
    return fingerprint(step_of(recipe, section), inputs)


def make(document: dict[str, Any]) -> Recipe:
    whole = {"model": "m", "output": "o", "data": {"dataset": "d"}, "pretrain": {}, "decompose": {}}
    return Recipe.model_validate(whole | document)


@pytest.mark.parametrize(
    ("result", "no_effect"), [("last", NO_EFFECT), ("best", NO_EFFECT - {"eval_every"})]
)
def test_which_keys_of_a_training_section_count(result: str, no_effect: set[str]) -> None:
    """Where the best evaluation gives the weights, it matters when there are evaluations."""
    assert set(OTHER) == set(Pretrain.model_fields)  # whoever adds a key decides on it
    before = digest_of(make({"pretrain": {"result": result}}), "pretrain", "x")
    same = {
        key
        for key, value in (OTHER | {"result": "best" if result == "last" else "last"}).items()
        if digest_of(make({"pretrain": {"result": result, key: value}}), "pretrain", "x") == before
    }
    assert same == no_effect


@pytest.mark.parametrize(("name", "dropout"), [("pretrain", {"dropout": False}), ("finetune", {})])
def test_the_fingerprint_of_a_run_to_its_last_weights(name: Any, dropout: dict[str, Any]) -> None:
    """Artefacts bear such digests: a change here has `pela run` train them all again."""
    section = {"epochs": 3, "eval_every": 2, "batch_size": 8, "result": "last"}
    recipe = make({name: section})
    whole = resolved(recipe)
    elsewhere = NO_EFFECT | {"task", "task_args", "data", "batch_size", "dropout"}
    data = {key: value for key, value in whole["data"].items() if key not in OF_READING}
    parts = {
        "model": "m", "weights": "pretrained", "arch": None, "model_args": {}, "num_classes": None,
        "seed": 0, "task": "image-classification", "inputs": "x",
        "section": {k: v for k, v in whole[name].items() if k not in elsewhere}
        | {"precision": "no"}
        | dropout,
        "data": data | {"batch_size": 8},
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    assert digest_of(recipe, name, "x") == digest


def test_the_fingerprint_of_a_decompose_step() -> None:
    section = {"max_drop": 1.0, "calibrate": "train", "task": "vqa", "task_args": {"top": 1}}
    section["form"] = "factors"
    recipe = make({"decompose": section})
    apart = {"task", "task_args", "data", "split", "blockwise", "form", "latency"}
    parts = {
        "model": "m", "weights": "pretrained", "arch": None, "model_args": {}, "num_classes": None,
        "seed": 0, "task": "vqa", "task_args": {"top": 1}, "inputs": "x",
        "section": {k: v for k, v in resolved(recipe)["decompose"].items() if k not in apart}
        | {"ratio": "None", "plan": None},
        "data": {
            "dataset": "d", "train": "train", "image_size": None,
            "max_drop": {
                "dataset": "d", "image_size": None, "split": "validation", "crop_pct": None,
            },
        },
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    assert digest_of(recipe, "decompose", "x") == digest


def test_what_time_is_measured_on_counts_where_a_budget_counts_time() -> None:
    def digest(device: str = "cpu", **section: Any) -> str:
        return digest_of(make({"decompose": section, "device": device}), "decompose", "x")

    asked = {"batch_size": 4, "compile": True}
    assert digest(latency=asked) == digest() == digest("cuda")
    by_time = [
        digest(unit="latency"),
        digest(unit="latency", latency={"batch_size": 4}),
        digest(unit="latency", latency=asked),
        digest("cuda", unit="latency", latency=asked),
    ]
    assert len(set(by_time)) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"weights": "random"},
        {"arch": "a"},
        {"model_args": {"workers": 1}},  # an architecture's own word, not the data's
        {"num_classes": 3},
        {"seed": 1},
        {"task": "unlabelled"},
        {"task_args": {"top": 1}},
        {"data": {"dataset": "e"}},
        {"data": {"dataset": "d", "augment": {"mixup": 0.5}}},
        {"data": {"dataset": "d", "batch_size": 8}},
        {"pretrain": {"loss": {"eps": 0.5}}},
    ],
)
def test_what_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert digest_of(make(change), "pretrain", "x") != digest_of(make({}), "pretrain", "x")


@pytest.mark.parametrize(
    "change",
    [
        {"output": "elsewhere"},
        {"device": "cpu"},
        {"data": {"dataset": "d", "workers": 4}},
        {"data": {"dataset": "d", "on_bad_sample": "skip"}},
        {"decompose": {"ratio": "1/3"}},  # its result is the input, by its digest
        {"finetune": {"lr": 0.5}},
        {"eval": {"max_drop": 1.0}},
        {"pretrain": {"batch_size": 64, "task": "image-classification"}},  # what it had already
        {"pretrain": {"data": {"dataset": "d"}}},
    ],
)
def test_what_leaves_the_fingerprint_alone(change: dict[str, Any]) -> None:
    assert digest_of(make(change), "pretrain", "x") == digest_of(make({}), "pretrain", "x")


def test_the_input_and_the_step_change_the_fingerprint() -> None:
    recipe = make({"finetune": {}, "teacher": {}})
    prints = {
        digest_of(recipe, section, inputs)
        for section in ("pretrain", "decompose", "finetune")
        for inputs in ("x", "y")
    }
    assert len(prints) == 6
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in prints)
    assert digest_of(recipe, "finetune", "x") == digest_of(
        Recipe.model_validate(resolved(recipe)), "finetune", "x"
    )


def test_the_data_that_the_section_names_counts_and_no_other() -> None:
    own = {"dataset": "own"}
    one, two = (make({"pretrain": {"data": own}, "data": {"dataset": d}}) for d in ("d", "e"))
    assert digest_of(one, "pretrain", "x") == digest_of(two, "pretrain", "x")


def decomposed(section: dict[str, Any], data: dict[str, Any]) -> str:
    recipe = make({"decompose": section, "data": {"dataset": "d"} | data})
    return digest_of(recipe, "decompose", "x")


def test_decompose_counts_only_the_data_it_calibrates_on() -> None:
    assert decomposed({}, {}) == decomposed({}, {"dataset": "e"})
    used = {"calibrate": "train"}
    assert decomposed(used, {}) != decomposed({}, {})
    assert decomposed(used, {}) != decomposed(used, {"dataset": "e"})
    assert decomposed(used, {}) != decomposed(used, {"image_size": 8})
    assert decomposed(used, {}) == decomposed(used, {"batch_size": 8, "augment": {"mixup": 0.5}})


def test_factors_have_the_fingerprint_of_before_there_were_forms() -> None:
    """`test_the_fingerprint_of_a_decompose_step` has no form in it."""
    assert decomposed({"form": "auto"}, {}) == decomposed({}, {})
    assert len({decomposed({"form": f}, {}) for f in ("auto", "factors", "pivots")}) == 3


def test_two_spellings_of_a_ratio_have_one_fingerprint() -> None:
    assert decomposed({"ratio": 0.5}, {}) == decomposed({"ratio": "1/2"}, {})
    assert decomposed({"ratio": 0.5}, {}) != decomposed({"ratio": "0.51"}, {})


def test_the_data_that_the_drop_is_measured_on_counts() -> None:
    drop = {"max_drop": 1.0}
    before = decomposed(drop, {})
    for change in ({"dataset": "e"}, {"val": "v"}, {"image_size": 8}, {"augment": {"crop_pct": 1}}):
        assert decomposed(drop, change) != before
    assert decomposed({"max_drop": 2.0}, {}) != before
    assert decomposed({**drop, "task": "unlabelled"}, {}) != before
    for same in ({"train": "t"}, {"batch_size": 8}, {"augment": {"mixup": 0.5}}):
        assert decomposed(drop, same) == before
    # What is said in another place is the same data still.
    assert decomposed({**drop, "split": "v"}, {}) == decomposed(drop, {"val": "v"})
    assert decomposed({**drop, "data": {"dataset": "d"}}, {"dataset": "e"}) == before
    both = {**drop, "calibrate": "train"}
    assert decomposed(both, {"train": "t"}) != decomposed(both, {})


def test_the_ratio_is_one_half_unless_something_else_says_how_small() -> None:
    assert decomposed({"ratio": 0.5}, {}) == decomposed({}, {})
    assert Decompose(energy=0.9).budget is None
    assert Decompose(policy="threshold", threshold=0.9).budget is None
    assert Decompose(policy="threshold", threshold=0.9, ratio="0.5").budget == Fraction(1, 2)


def test_an_edited_plan_changes_the_fingerprint() -> None:
    plan = Path("plan.json")
    missing = decomposed({"plan": "plan.json"}, {})
    plan.write_text("{}")
    before = decomposed({"plan": "plan.json"}, {})
    plan.write_text("{ }")
    assert len({missing, before, decomposed({"plan": "plan.json"}, {})}) == 3
