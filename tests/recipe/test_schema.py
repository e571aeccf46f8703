"""A recipe with all its defaults reads back the same, and the schema describes every key."""

from __future__ import annotations

import json

import pytest
from recipe_text import FULL, TOP, read

from pelacli.recipe.schema import Recipe, json_schema, resolved
from pelacli.recipe.training import Train


@pytest.mark.parametrize("text", [FULL, TOP])
def test_a_resolved_recipe_reads_back_the_same(text: str) -> None:
    recipe = read(text)
    stored = json.loads(json.dumps(resolved(recipe), allow_nan=False))
    assert Recipe.model_validate(stored) == recipe
    assert resolved(Recipe.model_validate(stored)) == stored


def test_a_resolved_recipe_has_every_key_in_plain_values() -> None:
    document = resolved(read(FULL))
    assert document["output"] == "runs/x"
    assert document["decompose"]["ratio"] == "2/3"
    assert document["decompose"]["plan"] == "plans/a.json"
    assert document["data"]["augment"]["scale"] == [0.5, 1.0]
    assert document["pretrain"]["loss"]["eps"] == 1e-3
    assert set(document["finetune"]) == set(Train.model_fields)


def test_the_schema_describes_every_key() -> None:
    document = json_schema()
    assert set(document["properties"]) == set(Recipe.model_fields)
    assert document["required"] == ["model", "output"]
    for model in [document, *document["$defs"].values()]:
        assert model["additionalProperties"] is False
        for name, field in model["properties"].items():
            assert field.get("description"), (model["title"], name)
    ratio = document["$defs"]["Decompose"]["properties"]["ratio"]
    assert {kind["type"] for kind in ratio["anyOf"]} == {"string", "number", "null"}
