"""A recipe with all its defaults reads back the same, and the schema describes every key."""

from __future__ import annotations

import json

import pytest
from recipe_text import FULL, TOP, read

from pelacli.recipe.schema import Recipe, Train, json_schema, resolved


@pytest.mark.parametrize("text", [FULL, TOP])
def test_a_resolved_recipe_reads_back_the_same(text: str) -> None:
    recipe = read(text)
    stored = json.loads(json.dumps(resolved(recipe), allow_nan=False))
    assert Recipe.model_validate(stored) == recipe
    assert resolved(Recipe.model_validate(stored)) == stored


def test_a_resolved_recipe_has_every_key_in_plain_values() -> None:
    found = resolved(read(FULL))
    assert found["output"] == "runs/x"
    assert found["decompose"]["ratio"] == "2/3"
    assert found["decompose"]["plan"] == "plans/a.json"
    assert found["data"]["augment"]["scale"] == [0.5, 1.0]
    assert found["pretrain"]["loss"]["eps"] == 1e-3
    assert set(found["finetune"]) == set(Train.model_fields)


def test_the_schema_describes_every_key() -> None:
    found = json_schema()
    assert set(found["properties"]) == set(Recipe.model_fields)
    assert found["required"] == ["model", "output"]
    for model in [found, *found["$defs"].values()]:
        assert model["additionalProperties"] is False
        for name, field in model["properties"].items():
            assert field.get("description"), (model["title"], name)
    ratio = found["$defs"]["Decompose"]["properties"]["ratio"]
    assert {kind["type"] for kind in ratio["anyOf"]} == {"string", "number", "null"}
