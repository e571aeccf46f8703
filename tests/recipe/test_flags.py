"""Flags make a recipe, or take the place of a recipe's own values, and are named where wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipe_text import TOP, read

from pelacli.errors import RequestError
from pelacli.recipe.decompose import Decompose
from pelacli.recipe.flags import from_flags, with_flags
from pelacli.recipe.schema import Recipe, resolved


def test_flags_win_over_the_section() -> None:
    recipe = read(TOP + "[decompose]\nratio = 0.5\nmin_rank = 2\n")
    changed = with_flags(recipe, "decompose", ratio="2/3", max_rank=8, scope=None)
    assert changed.decompose == Decompose(ratio="2/3", min_rank=2, max_rank=8)
    assert recipe.decompose == Decompose(ratio="0.5", min_rank=2)
    assert with_flags(recipe, "decompose", ratio=None) is recipe
    assert with_flags(recipe, "", seed=4).seed == 4


def test_a_flag_takes_the_place_of_other_keys() -> None:
    recipe = read(TOP + "[decompose]\nratio = 0.5\nmin_rank = 2\n")
    changed = with_flags(recipe, "decompose", instead_of={"ratio", "plan"}, energy=0.9)
    assert changed.decompose == Decompose(energy=0.9, min_rank=2)
    assert with_flags(recipe, "decompose", instead_of={"ratio"}, energy=None) is recipe


@pytest.mark.parametrize("recipe", [Recipe(model="a", output=Path("b")), None])
def test_flags_add_the_section_that_a_recipe_lacks(recipe: Recipe | None) -> None:
    recipe = recipe or Recipe.model_validate(resolved(Recipe(model="a", output=Path("b"))))
    assert with_flags(recipe, "decompose", ratio="1/3").decompose == Decompose(ratio="1/3")


@pytest.mark.parametrize(
    ("section", "flags", "line"),
    [
        (
            "decompose",
            {"ratio": "7"},
            "--ratio: 7 is out of range; a ratio is above 0 and at most 1",
        ),
        ("decompose", {"min_rank": -1}, "--min-rank: -1 is out of range; at least 0"),
        (
            "decompose",
            {"policy": "enery"},
            "--policy: 'enery' is none of energy, uniform, threshold; did you mean 'energy'?",
        ),
        ("decompose", {"max_rank": 1}, "--max-rank: max_rank 1 is below min_rank 2; change one"),
        ("decompose", {"threshold": 0.5}, "--threshold: needs policy = 'threshold' too"),
        (
            "decompose",
            {"pin": {"x(": 3}},
            "--pin: 'x(' is no regular expression "
            "(missing ), unterminated subpattern at position 1)",
        ),
        ("", {"seed": -1}, "--seed: -1 is out of range; at least 0"),
        ("eval", {"batch_size": 0}, "--batch-size: 0 is out of range; at least 1"),
        (
            "finetune",
            {"lr": 0.1},
            "with --lr: finetune: needs data; add [data] or [finetune.data]",
        ),
    ],
)
def test_a_wrong_flag_is_named(section: str, flags: dict[str, Any], line: str) -> None:
    recipe = read(TOP + "[decompose]\nmin_rank = 2\n")
    with pytest.raises(RequestError) as caught:
        with_flags(recipe, section, **flags)
    assert str(caught.value) == line


def test_flags_alone_make_a_recipe() -> None:
    recipe = from_flags(
        {"model": "a", "output": "b", "seed": None},
        {"decompose": {"ratio": "0.5", "pin": None}},
        ["decompose.samples=8", "decompose.ratio=1/3"],
    )
    assert recipe == Recipe(
        model="a", output=Path("b"), decompose=Decompose(ratio="1/3", samples=8)
    )


@pytest.mark.parametrize(
    ("top", "section", "overrides", "line"),
    [
        ({"model": ""}, {}, [], "MODEL: is empty"),
        ({"seed": -1}, {}, [], "--seed: -1 is out of range; at least 0"),
        ({}, {"samples": 0}, [], "--samples: 0 is out of range; at least 1"),
        ({}, {"samples": 1}, ["decompose.samples=0"],
         "--set decompose.samples=0: 0 is out of range; at least 1"),
        ({}, {}, ["decompse.samples=0"],
         "--set decompse.samples=0: decompse: unknown key; did you mean 'decompose'?"),
        ({}, {"calibrate": "train"}, [],
         "--calibrate: 'train' is the recipe's own data; add [data]"),
    ],
)  # fmt: skip
def test_a_wrong_flag_or_override_without_a_file_is_named(
    top: dict[str, Any], section: dict[str, Any], overrides: list[str], line: str
) -> None:
    with pytest.raises(RequestError) as caught:
        from_flags({"model": "a", "output": "b"} | top, {"decompose": section}, overrides)
    assert str(caught.value) == line
