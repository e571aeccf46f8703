"""A program, not a test: uses the budget ``params``, whose file lies in the directory it is given.

It runs in a process of its own, as the sections of a recipe are made when they are first imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pelacli.ranks import budgets

budgets.__path__.append(sys.argv[1])

import numpy as np  # noqa: E402

from pelacli.cli import requests  # noqa: E402
from pelacli.errors import InfeasibleError, RequestError  # noqa: E402
from pelacli.planning import settings  # noqa: E402
from pelacli.planning.choice import choose  # noqa: E402
from pelacli.ranks import plan_file  # noqa: E402
from pelacli.ranks.size import ModelSize  # noqa: E402
from pelacli.ranks.spectrum import Spectrum  # noqa: E402
from pelacli.recipe import schema, validation  # noqa: E402
from pelacli.recipe.decompose import Decompose  # noqa: E402


def refusal(call, kind=RequestError):
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError("it was accepted")


def section(**values):
    return validation.section(Decompose, values, names={})


# Its key is checked as its file says, and goes with no other budget.
assert section(params=7).params == 7
assert "out of range; at least 1" in refusal(lambda: section(params=0))
assert "expected a whole number" in refusal(lambda: section(params=0.5))
for other in ({"ratio": "0.5"}, {"energy": 0.5}, {"max_drop": 1.0}, {"plan": "p.json"}):
    (name,) = other
    said = refusal(lambda other=other: section(params=7, **other))
    assert said == f"params: params and {name} both say how small; give one", said
said = refusal(lambda: section(params=7, policy="threshold", threshold=0.5))
assert said == "params: params and threshold both say how small; give one", said
said = refusal(lambda: section(params=7, policy="threshold"))
assert said == "params: belongs to policy 'energy' or 'uniform', not to 'threshold'", said
described = schema.json_schema()["$defs"]["Decompose"]["properties"]["params"]
assert described["description"] == "how many parameters may remain"

# A plan has at most so many parameters, in whatever unit the recipe counts ratios.
layers = [Spectrum(name, (9, 9), np.arange(9.0, 0.0, -1.0), tokens=4.0) for name in "ab"]
size = ModelSize(fixed_params=10, fixed_flops=80, shapes={s.name: s.shape for s in layers})
for policy, ranks in (("energy", 5), ("uniform", 2 + 2)):
    asked = {"policy": policy, "unit": "flops", "scope": "layers", "form": "factors"}
    plan = choose(layers, size, section(params=100, **asked))
    assert (plan.unit, plan.scope, plan.limit) == ("params", "model", 100)
    assert plan.used == 10 + ranks * (9 + 9)
assert "params 100" in str(plan)
document = json.loads(json.dumps(plan.to_dict()))
assert (document["asked"], document["ratio"]) == ("params 100", None)
assert plan_file.from_document(document, "p") == plan
said = refusal(lambda: choose(layers, size, section(params=43)), InfeasibleError)
assert said.startswith("params 43 cannot be met: the smallest possible is 44, because"), said

# Stored spectra are planned by it, and what they were made with gives way, in both directions.
stored = settings.from_stored({"ratio": "0.5"}, {}, "s", ["decompose.params=100"])
assert (stored.params, stored.ratio) == (100, None)
stored = settings.from_stored({"params": 100}, {"ratio": "0.5"}, "s")
assert (stored.params, stored.ratio) == (None, "0.5")

# The command line takes it as a key, and names the run by it.
flags = dict.fromkeys(("ratio", "energy", "threshold", "max_drop", "plan", "policy", "unit"))
step = requests.decompose("vit", {}, flags, ["decompose.params=100"], None)
assert step.settings.params == step.document["decompose"]["params"] == 100
assert step.output == Path("runs/vit-params100")
said = refusal(lambda: requests.decompose("vit", {}, flags, [], None))
assert said == (
    "decompose needs --ratio (how much smaller), --energy, --threshold, --max-drop, "
    "--set decompose.params=… or --plan"
), said
flags["unit"] = "flops"
said = refusal(lambda: requests.decompose("vit", {}, flags, ["decompose.params=100"], None))
assert said == "--unit: says what a ratio counts, and there is none; leave it out", said
Path("r.toml").write_text('model = "m"\noutput = "o"\n[decompose]\nparams = 100\n')
step = requests.decompose("r.toml", {}, {"energy": 0.5}, [], None)
assert (step.settings.params, step.settings.energy) == (None, 0.5)
assert "torch" not in sys.modules

# So does the Python interface, as a keyword.
from torch import nn  # noqa: E402

import pelacli  # noqa: E402

model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
assert pelacli.plan(model, params=300).used <= 300
assert pelacli.decompose(model, params=300).limit == 300
assert sum(p.numel() for p in model.parameters()) <= 300
said = refusal(lambda: pelacli.plan(model, parms=300), TypeError)
assert "'parms'" in said, said
assert "params" in said, said
print("all of it was checked")
