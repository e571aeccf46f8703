"""What a recipe says is what is read, and it never changes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from recipe_text import DATA, FULL, read

from pelacli.errors import RequestError
from pelacli.recipe.data import Augment, Data
from pelacli.recipe.decompose import Decompose
from pelacli.recipe.reading import load
from pelacli.recipe.schema import Eval, Recipe
from pelacli.recipe.training import Loss, Pretrain


def test_a_full_recipe_is_read_with_all_its_values() -> None:
    recipe = read(FULL)
    assert recipe.model_args == {
        "img_size": 32,
        "drop": 0.5,
        "flag": True,
        "name": "a",
        "sizes": [1, 2],
    }
    assert recipe.model_args["flag"] is True
    assert recipe.output == Path("runs/x")
    assert recipe.data is not None
    assert recipe.data.augment.scale == (0.5, 1.0)
    assert recipe.teacher is not None
    assert recipe.teacher.epochs == 0.5
    assert recipe.decompose is not None
    assert recipe.decompose.pin == {"blocks[.]0": 8, "qkv": "dense"}
    assert recipe.decompose.plan == Path("plans/a.json")
    assert recipe.pretrain is not None
    assert recipe.pretrain.loss == Loss(feature=0.5, perturbation_form="hinge")
    assert recipe.finetune is not None
    assert recipe.finetune.data == Data(dataset="hfds/cifar10")


def test_keys_that_are_not_given_have_their_defaults() -> None:
    recipe = read(DATA + "[pretrain]\n[decompose]\n[eval]\n")
    assert recipe == Recipe(
        model="vit_base",
        output=Path("runs/x"),
        data=Data(dataset="digits", augment=Augment()),
        pretrain=Pretrain(
            lr="auto",
            loss=Loss(task=1.0, output=1.0, feature=1.0, feature_unit="relative"),
            result="best",
        ),
        decompose=Decompose(ratio=None, unit="params", scope="model", policy="energy"),
        eval=Eval(latency=True),
    )
    assert recipe.teacher is None
    assert Decompose().budget == Fraction(1, 2)


def test_windows_line_ends_and_a_byte_order_mark_change_neither_keys_nor_lines() -> None:
    Path("x.toml").write_bytes(("\ufeff" + DATA + "wrokers = 1\n").replace("\n", "\r\n").encode())
    with pytest.raises(RequestError) as caught:
        load(Path("x.toml"))
    assert str(caught.value) == "x.toml:5: data.wrokers: unknown key; did you mean 'workers'?"


def test_a_recipe_does_not_change() -> None:
    recipe = read(DATA)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]
