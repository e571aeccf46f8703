"""Every recipe that comes with pela runs by its header's command, on tiny stand-ins of its model
and its data."""

from __future__ import annotations

from pathlib import Path

import pytest
import shipped_recipes as shipped
from json_output import document

from pelacli.recipe import gallery


def test_every_shipped_recipe_is_tried():
    assert set(shipped.STAND_INS) == set(gallery.recipes())


@pytest.mark.parametrize("name", sorted(shipped.STAND_INS))
def test_the_header_of_a_recipe_copies_it_and_runs_it(name):
    commands = [words for words in shipped.commands(name) if words[0] != "eval"]
    assert commands[-2] == ["recipes", "copy", name]
    assert commands[-1][:2] == ["run", f"{Path(name).name}.toml"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in shipped.SLOW else n
             for n in sorted(shipped.STAND_INS)],
)  # fmt: skip
def test_a_recipe_runs_by_the_command_of_its_header(pela, here, monkeypatch, name):
    monkeypatch.setattr("pelacli.steps.latency.SECONDS", 0.02)  # of timing
    stand_in = shipped.STAND_INS[name]
    stand_in.make()
    commands = shipped.commands(name)
    for words in commands:
        if words[0] == "recipes":
            code, _, err = pela(*words)
            assert code == 0, err
            continue
        small = shipped.made_small(words, stand_in, is_last=words == commands[-1])
        code, _, err = pela("recipes", "check", *small[1:])
        assert code == 0, err
        done = document(pela(*small, "--json"))
        assert all(Path(step["artefact"], "pela.json").is_file() for step in done["steps"])
