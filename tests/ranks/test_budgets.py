"""Budgets in FLOPs and in energy, from the command line on down."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import pelacli
from pelacli.artefact import description
from pelacli.console import figures
from pelacli.errors import RequestError
from pelacli.lowrank import find
from pelacli.manifest import document as manifest_document
from pelacli.planning import stored
from pelacli.ranks import planner
from pelacli.ranks.budget import Budget

SWIN = (
    'model = "swin_tiny_patch4_window7_224"\nweights = "random"\noutput = "runs/swin"\n'
    "model_args = { img_size = 56, embed_dim = 16, depths = [1, 1, 2, 1], num_heads = [1, 2, 4, 8],"
    " window_size = 7 }\nnum_classes = 10\n"
)


@pytest.fixture
def swin(here):
    (here / "swin.toml").write_text(SWIN)
    return "swin.toml"


def document(answer, code=0):
    assert answer[0] == code, answer[2]
    return json.loads(answer[1])


# --- FLOPs ---------------------------------------------------------------------------------------


def test_a_swins_flops_are_spent_in_another_way_than_its_parameters(pela, swin, here):
    """Of equal FLOPs the FLOP plan keeps more energy; of equal parameters the other one."""
    pela("decompose", swin, "--ratio", "0.5", "--dry-run", "--spectra", "s")
    layers = stored.load(here / "s").layers
    assert {s.tokens for s in layers} == {14.0**2, 7.0**2, 4.0**2, 2.0**2}  # a patch is 4 × 4

    def price(s, unit):
        return 1 if unit == "params" else 2 * int(s.tokens)

    def spent(plan, unit):
        ranks = plan.ranks()
        out_in = {s.name: (s.shape[0] * s.shape[1], sum(s.shape)) for s in layers}
        return sum(
            price(s, unit)
            * (ranks[s.name] * out_in[s.name][1] if s.name in ranks else out_in[s.name][0])
            for s in layers
        )

    def best(unit, budget):
        ratio = Fraction(budget, sum(price(s, unit) * s.shape[0] * s.shape[1] for s in layers))
        return planner.plan(layers, Budget("energy", ratio, scope="layers", unit=unit))

    whole = sum(s.shape[0] * s.shape[1] for s in layers)
    by_params = best("params", whole // 2)
    by_flops = best("flops", spent(by_params, "flops"))
    assert by_flops.ranks() != by_params.ranks()
    assert spent(by_flops, "flops") <= spent(by_params, "flops")
    assert by_flops.energy > by_params.energy
    again = best("params", spent(by_flops, "params"))
    assert spent(again, "params") <= spent(by_flops, "params")
    assert again.energy > by_flops.energy


def test_a_flop_budget_of_the_whole_model_is_met(pela, swin, here):
    done = document(pela("decompose", swin, "--ratio", "0.6", "--unit", "flops", "--json"))
    assert done["unit"] == "flops"
    assert done["requested"] == "0.6"
    assert done["flops_ratio"] == figures(done["flops"]["after"] / done["flops"]["before"])
    assert 0.59 <= done["flops_ratio"] <= 0.6
    assert manifest_document.read(here / done["artefact"]).unit == "flops"
    # What was promised is what torch counts in the model that was made.
    module = pelacli.load(here / done["artefact"])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, 3, 56, 56))
    assert counter.get_total_flops() == done["flops"]["after"]


def test_calibration_does_not_change_what_a_flop_is(pela, swin, here):
    generator = torch.Generator().manual_seed(0)
    (here / "images").mkdir()
    for n in range(4):
        pixels = torch.randint(0, 255, (56, 56, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(here / "images" / f"{n}.png")
    how = ("--ratio", "0.6", "--unit", "flops", "--dry-run", "--json")
    plain = document(pela("decompose", swin, *how))
    calibrated = document(pela("decompose", swin, *how, "--calibrate", "images"))
    assert calibrated["calibrated"]
    assert calibrated["flops"]["before"] == plain["flops"]["before"]
    assert 0.59 <= calibrated["flops_ratio"] <= 0.6


def test_a_flop_budget_names_the_artefact(pela, here):
    done = document(
        pela(
            "decompose", "test_vit", "--weights", "random", "--ratio", "2/3", "--unit", "flops",
            "--json",
        )
    )  # fmt: skip
    assert done["artefact"] == "runs/test_vit-f0.67"
    assert "ratio 2/3" not in pela("report", "runs/test_vit-f0.67")[1]


def test_an_impossible_flop_budget_speaks_of_flops(pela, swin):
    code, out, err = pela("decompose", swin, "--ratio", "0.01", "--unit", "flops")
    assert (code, out) == (2, "")
    assert "of the FLOPs" in err
    assert "what is no linear layer" in err
    smallest = err.split("smallest possible is ")[1].split(",")[0]
    how = (swin, "--unit", "flops", "--dry-run", "--json")
    assert document(pela("decompose", *how, "--ratio", smallest))
    assert pela("decompose", *how, "--ratio", str(float(smallest) - 1e-4))[0] == 2


def test_unknown_flops_are_refused(pela, swin, here, monkeypatch):
    monkeypatch.setattr(description, "cost", lambda opened, layers: None)
    code, out, err = pela("decompose", swin, "--ratio", "0.5", "--unit", "flops")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "its FLOPs are unknown" in err
    assert "--unit params" in err
    assert not (here / "runs").exists()


def test_stored_spectra_know_their_flops(pela, swin, here):
    how = ("--ratio", "0.6", "--unit", "flops", "--dry-run", "--json")
    first = document(pela("decompose", swin, *how, "--spectra", "s"))
    again = document(pela("decompose", "s", *how))
    assert again["layers"] == first["layers"]
    assert again["flops"] == first["flops"]
    code, _, err = pela("decompose", "s", "--ratio", "0.01", "--unit", "flops", "--dry-run")
    assert code == 2
    assert "what is no linear layer" in err


class TwoRates(nn.Module):
    """A wide layer that is applied to every token, and one of the same shape applied once."""

    def __init__(self):
        super().__init__()
        self.often, self.once = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        return self.once(self.often(x).mean(1))


def test_api_plans_flops_of_any_module_by_its_batches():
    torch.manual_seed(0)
    model = TwoRates()
    batches = [torch.randn(4, 16, 32), torch.randn(2, 16, 32)]
    how = {"ratio": 0.5, "scope": "layers", "form": "factors"}
    plan = pelacli.plan(model, unit="flops", batches=iter(batches), **how)
    assert plan.unit == "flops"
    assert plan.total == 2 * 17 * 32 * 32
    assert plan.used <= plan.total / 2
    ranks = {name: plan.ranks().get(name, 16) for name in ("often", "once")}
    assert 2 * 64 * (16 * ranks["often"] + ranks["once"]) == plan.used
    by_params = pelacli.plan(model, batches=batches, **how)
    assert by_params.total == 2 * 32 * 32
    assert by_params.ranks()["often"] > ranks["often"]
    with pytest.raises(RequestError, match="its FLOPs are unknown; give batches"):
        pelacli.plan(model, ratio=0.5, unit="flops")


def test_api_keeps_a_share_of_the_energy():
    torch.manual_seed(0)
    model = TwoRates()
    plan = pelacli.decompose(model, energy=0.9)
    assert plan.energy >= 0.9
    assert plan.share == 0.9
    assert {n: m.rank for n, m in find.low_rank_layers(model).items()} == plan.ranks()


# --- energy --------------------------------------------------------------------------------------


def test_energy_is_kept_at_the_least_cost(pela, here):
    how = ("decompose", "test_vit", "--weights", "random", "--json")
    done = document(pela(*how, "--energy", "0.8"))
    assert done["artefact"] == "runs/test_vit-e0.8"
    assert done["energy"] >= 0.8
    assert done["requested"] is None
    smaller = f"{done['ratio'] - 1e-4:.6f}"
    assert document(pela(*how, "--ratio", smaller, "--dry-run"))["energy"] < 0.8
    more = document(pela(*how, "--energy", "0.8", "--unit", "flops", "--dry-run"))
    assert more["energy"] >= 0.8
    assert more["flops"]["after"] <= done["flops"]["after"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--energy", "0.9", "--ratio", "0.5"), "--energy: energy and ratio both say how small"),
        (("--energy", "0.9", "--policy", "uniform"), "--energy: belongs to policy 'energy'"),
        (("--energy", "1.5"), "--energy: 1.5 is out of range; at most 1"),
        (("--max-drop", "1", "--data", "digits", "--ratio", "0.5"), "max_drop and ratio both"),
        (("--max-drop", "1", "--data", "digits", "--threshold", "0.5"), "max_drop and threshold"),
        (("--max-drop", "1", "--data", "digits", "--energy", "0.5"), "max_drop and energy both"),
        (("--max-drop", "1", "--data", "digits", "--plan", "p"), "max_drop and plan both"),
        (("--max-drop", "-1", "--data", "digits"), "--max-drop: -1.0 is out of range; at least 0"),
        (("--max-drop", "1"), "--max-drop: needs samples to measure on; give --data"),
        (("--ratio", "0.5", "--data", "digits"), "--data: is what max_drop measures on"),
        (("--ratio", "0.5", "--split", "test"), "--split: is what max_drop measures on"),
        (("--ratio", "0.5", "--unit", "bytes"), "--unit: 'bytes' is none of params, flops"),
        (("--unit", "flops"), "decompose needs --ratio"),
    ],
)
def test_budgets_that_clash_are_refused_in_one_line(pela, here, flags, says):
    code, out, err = pela("decompose", "test_vit", "--weights", "random", *flags)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert says in err
    assert list(here.iterdir()) == []
