"""Budgets are found by the names of their files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pelacli.cli import requests
from pelacli.errors import RequestError
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget
from pelacli.ranks.budgets import registry
from pelacli.ranks.limit import Limit
from pelacli.ranks.policies import registry as policies
from pelacli.ranks.spectrum import Spectrum
from pelacli.recipe.decompose import Decompose

USE_PARAMS = Path(__file__).parent / "use_a_budget_of_parameters.py"
PARAMS = """
from pelacli.ranks.budgets import base


class Kind(base.Kind):
    DESCRIPTION = "how many parameters may remain"
    TYPE = int
    BOUNDS = {"ge": 1}
    UNIT, SCOPE = "params", "model"

    def asks(self, value):
        return self.limit(value)
"""


def test_a_file_is_all_that_a_new_budget_needs(tmp_path):
    """Recipes, ``--set``, stored spectra, plans and the Python interface take its name."""
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds" / "params.py").write_text(PARAMS)
    done = subprocess.run(
        [sys.executable, str(USE_PARAMS), str(tmp_path / "kinds")],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "all of it was checked"


def test_those_that_policies_list_come_first():
    """In this order a message names them."""
    assert registry.names() == ("ratio", "energy", "threshold", "max_drop", "plan")


@pytest.mark.parametrize(
    ("flags", "overrides", "name"),
    [
        ({}, ["decompose.ratio=2/3"], "vit-r0.67"),
        ({}, ["decompose.energy=0.9"], "vit-e0.9"),
        ({}, ["decompose.ratio=0.5", "decompose.unit=flops"], "vit-f0.50"),
        ({"ratio": "0.5"}, ["decompose.ratio=0.4"], "vit-r0.40"),
        ({"unit": "flops"}, ["decompose={energy=0.9}"], "vit-e0.9"),
    ],
)
def test_an_override_says_how_small_as_a_flag_does(flags, overrides, name):
    """And the run is named by what counts."""
    assert requests.decompose("vit", {}, flags, overrides, None).output == Path("runs") / name


def test_an_override_of_the_section_leaves_no_budget_of_a_flag():
    with pytest.raises(RequestError, match="decompose needs --ratio"):
        requests.decompose("vit", {}, {"ratio": "0.5"}, ["decompose={min_rank=2}"], None)


@pytest.mark.parametrize("value", ["energy=much", "energy=[1]", "ratio=half", "threshold='a'"])
def test_an_override_of_no_good_is_refused_by_its_own_words(value):
    with pytest.raises(RequestError, match=f"--set decompose.{re.escape(value)}: "):
        requests.decompose("vit", {}, {}, [f"decompose.{value}"], None)


def test_each_key_has_the_type_that_the_budgets_file_says():
    text = {name: str(Decompose.model_fields[name].annotation) for name in registry.names()}
    for name in registry.names():
        assert registry.get(name).TYPE.__name__ in text[name]
        assert Decompose.model_fields[name].description == registry.get(name).DESCRIPTION


def test_a_policy_is_implied_only_by_a_budget_that_the_default_one_cannot_meet():
    assert registry.implied_policy({"threshold"}) == "threshold"
    assert registry.implied_policy({"threshold", "ratio"}) == "threshold"
    for name in ("ratio", "energy", "max_drop", "plan"):
        assert registry.implied_policy({name}) is None
    assert registry.owners("plan") == policies.names()


def test_a_limit_goes_with_no_other_limit_and_no_share():
    most = Limit("params", 100)
    for other in ({"ratio": 1}, {"energy": 0.5}):
        with pytest.raises(RequestError, match="params 100 and a ratio or an energy can't both"):
            Budget(most=most, **other)


def test_a_threshold_is_held_to_a_limit_that_is_no_ratio():
    layers = [Spectrum(name, (8, 8), 0.5 ** np.arange(8.0)) for name in "ab"]
    most, tight = Limit("params", 96), Limit("params", 95)  # two layers of three ranks of 8 + 8
    assert planner.plan(layers, Budget("threshold", threshold=0.8, most=most)).used == 96
    with pytest.raises(
        RequestError, match=r"threshold 0.8 gives params 96, above the requested 95"
    ):
        planner.plan(layers, Budget("threshold", threshold=0.8, most=tight))


def test_a_limit_of_any_size_is_told_exactly():
    assert str(Limit("params", 10**400)) == f"params {10**400}"
    assert Limit("size_mb", 3, 250_000).smallest(600_001) == "2.4001"
