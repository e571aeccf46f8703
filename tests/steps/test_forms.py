"""Both forms of low-rank layers, from the command line to the artefact and back."""

from __future__ import annotations

import json

import pytest
import torch
from older_artefacts import forget_digests
from safetensors.torch import load_file

import pelacli
from pelacli.lowrank.find import low_rank_layers
from pelacli.manifest import document

MODEL = ("vit_tiny", "--weights", "random")


def decomposed(pela, output, *options):
    request = ("decompose", *MODEL, "--ratio", "0.5", "--scope", "layers", "-o", output, "--json")
    code, out, err = pela(*request, *options)
    assert code == 0, err
    return json.loads(out)


def rows(path):
    return {row.name: row for row in document.read(path).layers if row.rank is not None}


def test_pivots_have_more_rank_for_the_same_parameters(pela, here):
    factors = decomposed(pela, "factors", "--form", "factors")
    pivots = decomposed(pela, "pivots")
    assert pivots["params"]["after"] <= factors["params"]["before"]
    assert pivots["energy"] > factors["energy"]
    assert {row.form for row in rows(here / "pivots").values()} == {"pivots"}
    for row in rows(here / "pivots").values():
        out, in_ = row.shape
        assert row.params.after == row.rank * (out + in_ - row.rank)
    stored = load_file(here / "pivots/model.safetensors")
    floats = sum(t.numel() for t in stored.values() if t.is_floating_point())
    assert floats == pivots["params"]["after"] == document.read(here / "pivots").params.after


def test_the_papers_policy_has_factors(pela, here):
    decomposed(pela, "uniform", "--policy", "uniform")
    assert {row.form for row in rows(here / "uniform").values()} == {"factors"}


@pytest.mark.parametrize("recorded", [True, False])
def test_it_is_read_back_to_the_bit_also_without_its_record(pela, here, recorded):
    decomposed(pela, "small")
    known = load_file(here / "small/model.safetensors")
    if not recorded:
        (here / "small/pela.json").unlink()
    model = pelacli.load(here / "small")
    state = model.state_dict()
    assert {low.form for low in low_rank_layers(model).values()} == {"pivots"}
    for name, tensor in known.items():
        assert torch.equal(state[name], tensor)
    pelacli.save(model, here / "again")
    again = load_file(here / "again/model.safetensors")
    assert again.keys() == known.keys()
    assert all(torch.equal(again[name], known[name]) for name in known)


def test_a_plan_edited_by_hand_gives_one_layer_the_other_form(pela, here):
    decomposed(pela, "small")
    plan = json.loads((here / "small/pela.json").read_text())
    first = next(row for row in plan["layers"] if row["rank"] is not None)
    first["form"] = "factors"
    (here / "plan.json").write_text(json.dumps({"layers": plan["layers"]}))
    code, _, err = pela("decompose", *MODEL, "--plan", "plan.json", "-o", "edited")
    assert code == 0, err
    ours, theirs = (pelacli.load(here / name) for name in ("edited", "small"))
    forms = {name: low.form for name, low in low_rank_layers(ours).items()}
    assert forms.pop(first["name"]) == "factors"
    assert set(forms.values()) == {"pivots"}
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-3, atol=1e-4)


def test_a_damaged_order_is_named(pela, here):
    from safetensors.torch import save_file

    decomposed(pela, "small")
    forget_digests(here / "small")
    file = here / "small" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(".order"))
    tensors[name][0] = 10**6
    save_file(tensors, file, {"format": "pt"})
    code, out, err = pela("eval", "small", "--data", "digits", "--no-latency")
    assert (code, out) == (2, "")
    assert name in err
