"""Policies are found by the names of their files."""

from __future__ import annotations

import subprocess
import sys

from pelacli.ranks.budgets import registry as budgets
from pelacli.ranks.policies import registry

LOWEST = """
BUDGETS = ("ratio",)
EIGHTS = False


def choose(layers, target):
    return [layer.low for layer in layers]
"""
USE_LOWEST = """
import sys

from pelacli.ranks import policies

policies.__path__.append(sys.argv[1])

from fractions import Fraction

import numpy as np

from pelacli.planning.choice import choose
from pelacli.ranks.policies import registry
from pelacli.ranks.size import ModelSize
from pelacli.ranks.spectrum import Spectrum
from pelacli.recipe.decompose import Decompose

settings = Decompose(policy="lowest", ratio="0.9", scope="layers", min_rank=2)
spectra = [Spectrum(name, (9, 9), np.ones(9)) for name in "ab"]
plan = choose(spectra, ModelSize(), settings)
print(registry.names(), registry.with_budget("ratio"), plan.ranks())
"""


def python(*args):
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_file_is_all_that_a_new_policy_needs(tmp_path):
    """Recipes take its name, sweeps offer it, and the planner asks it."""
    (tmp_path / "lowest.py").write_text(LOWEST)
    assert python("-c", USE_LOWEST, str(tmp_path)) == (
        "('energy', 'lowest', 'uniform', 'threshold') ('energy', 'lowest', 'uniform') "
        "{'a': 2, 'b': 2}"
    )


def test_policies_that_meet_a_ratio_come_first():
    assert registry.names() == ("energy", "uniform", "threshold")
    assert registry.with_budget("ratio") == ("energy", "uniform")
    assert registry.with_budget("energy") == ("energy",)
    assert registry.with_budget("threshold") == ("threshold",)


def test_each_budget_of_a_policy_is_one_of_those_that_a_recipe_may_name():
    for name in registry.names():
        assert set(registry.get(name).BUDGETS) <= set(budgets.names())


def test_recipes_are_read_without_numpy():
    code = "import sys, pelacli.recipe.reading; print('numpy' in sys.modules)"
    assert python("-c", code) == "False"
