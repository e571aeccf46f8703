"""``pela recipes``: list, show, copy, check and schema."""

from __future__ import annotations

import tomllib

from json_output import document


def test_recipes_are_listed_shown_copied_and_checked(pela, here):
    listed = document(pela("recipes", "list", "--json"))
    names = {row["name"] for row in listed}
    assert {"quickstart", "vit_base", "imagenet/deit_base"} <= names
    assert all(row["about"] for row in listed)
    code, out, err = pela("recipes", "list")
    assert (code, err) == (0, "")
    assert all(name in out for name in names)

    text = pela("recipes", "show", "quickstart")[1]
    assert tomllib.loads(text)["data"]["dataset"] == "digits"
    assert pela("recipes", "copy", "quickstart")[:2] == (0, "quickstart.toml\n")
    assert pela("recipes", "copy", "quickstart.toml", "mine.toml")[:2] == (0, "mine.toml\n")
    assert (here / "quickstart.toml").read_text() == (here / "mine.toml").read_text() == text

    code, out, err = pela("recipes", "check", "mine.toml", "--set", "pretrain.epochs=5")
    assert (code, err, tomllib.loads(out)["pretrain"]["epochs"]) == (0, "", 5)
    asked = document(pela("recipes", "check", "mine.toml", "--json", "--set", "pretrain.epochs=5"))
    assert asked["pretrain"]["epochs"] == 5
    assert asked["decompose"]["ratio"] == "1/2"
    assert "properties" in document(pela("recipes", "schema"))
