"""A plan as JSON: there and back, by hand, and against a model."""

import json
from fractions import Fraction

import numpy as np
import pytest

from pelacli.errors import RequestError
from pelacli.ranks.budget import Budget
from pelacli.ranks.plan import LayerPlan, Plan
from pelacli.ranks.plan_file import check, from_document
from pelacli.ranks.planner import plan
from pelacli.ranks.size import ModelSize
from pelacli.ranks.spectrum import Spectrum


@pytest.fixture
def chosen():
    rng = np.random.default_rng(0)
    shapes = {
        "blocks.0.attn.qkv": (48, 16),
        "blocks.0.mlp.fc1": (64, 16),
        "blocks.0.proj": (16, 16),
    }
    spectra = [
        Spectrum(name, shape, np.sort(rng.random(min(shape)))[::-1])
        for name, shape in shapes.items()
    ]
    return plan(
        spectra,
        Budget("energy", Fraction(2, 3), pins={"blocks.0.proj": "dense"}),
        ModelSize(fixed_params=100),
    )


def entry(**changes):
    return {"layers": {"a": {"shape": [4, 6], "rank": 2} | changes}}


def test_json_there_and_back(chosen):
    document = json.loads(json.dumps(chosen.to_dict()))
    assert from_document(document, "plan.json") == chosen
    assert document["unit"] == "params"
    assert document["ratio"] == "2/3"
    assert document["used"] <= document["limit"]
    assert "threshold" not in document
    assert document["layers"]["blocks.0.proj"] == {
        "shape": [16, 16], "rank": None, "form": None, "reason": "pinned dense", "energy": 1.0,
    }  # fmt: skip


def test_a_threshold_comes_back_too():
    layers = [Spectrum("a", (4, 6), np.array([4.0, 1.0, 0.0, 0.0]))]
    chosen = plan(layers, Budget("threshold", threshold=0.8))
    assert chosen.to_dict()["threshold"] == 0.8
    assert from_document(chosen.to_dict(), "x") == chosen
    assert chosen.ranks() == {"a": 1}


def test_ranks_can_be_edited_by_hand(chosen):
    document = chosen.to_dict()
    document["layers"]["blocks.0.proj"]["rank"] = 3
    document["layers"]["blocks.0.mlp.fc1"]["rank"] = None
    edited = from_document(document, "plan.json")
    assert edited.layers["blocks.0.proj"].rank == 3
    assert edited.layers["blocks.0.proj"].reason is None  # no longer "pinned dense"
    assert edited.layers["blocks.0.mlp.fc1"].reason == "the plan says so"
    assert edited.ranks().keys() == {"blocks.0.attn.qkv", "blocks.0.proj"}


def test_shape_and_rank_are_enough():
    assert from_document(entry(), "x").layers == {"a": LayerPlan((4, 6), 2)}


def test_a_form_is_read_and_one_of_a_dense_layer_is_not():
    def form(**changes):
        return from_document(entry(**changes), "x").layers["a"].form

    assert form(form="pivots") == "pivots"
    assert form() == form(form=None) == "factors"  # plans of before there were forms have none
    assert form(rank=None, form="pivots") is form(rank=None, form="old words") is None


def test_forms_go_there_and_back():
    spectra = [Spectrum("a", (6, 6), np.arange(6.0)[::-1]), Spectrum("b", (6, 6), np.ones(6))]
    budget = Budget(ratio=Fraction(1, 2), scope="layers", form="auto", forms={"b": "factors"})
    chosen = plan(spectra, budget)
    assert set(chosen.forms().values()) == {"pivots", "factors"}
    document = json.loads(json.dumps(chosen.to_dict()))
    assert from_document(document, "plan.json") == chosen
    assert "  a  6 × 6  rank 2 in pivots, energy 0." in str(chosen)
    assert "  b  6 × 6  rank 1, energy 0." in str(chosen)


def test_a_manifests_list_of_layers_will_do():
    record = {"name": "a", "shape": [4, 6], "rank": 2, "reason": None, "energy": 0.5,
              "kind": "linear", "params": {"before": 24, "after": 20}, "flops": None}  # fmt: skip
    document = {"policy": "energy", "scope": None, "history": [], "layers": [record]}
    assert from_document(document, "x").ranks() == {"a": 2}
    with pytest.raises(RequestError, match="layer a is there twice"):
        from_document({"layers": [record, record]}, "x")
    with pytest.raises(RequestError, match='needs a "name"'):
        from_document({"layers": [{"rank": 2}]}, "x")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], 'plan.json: not a plan: it needs "layers"'),
        ({"ranks": {}}, 'plan.json: not a plan: it needs "layers"'),
        ({"layers": {"a": 7}}, 'plan.json: a: needs "shape" and "rank", not 7'),
        ({"layers": {"a": {"shape": [4, 6]}}}, 'plan.json: a: has no "rank"'),
        (entry(rnk=3), "plan.json: a: unknown key 'rnk'; did you mean rank?"),
        (entry(rank="2"), "plan.json: a: rank '2' is not a whole number"),
        (entry(rank=True), "plan.json: a: rank True is not a whole number"),
        (entry(rank=2.0), "plan.json: a: rank 2.0 is not a whole number"),
        (entry(rank=-1), "plan.json: a: rank -1 is not a whole number"),
        (entry(rank=5), "plan.json: a: rank 5 is above 4"),
        (entry(shape=[4]), "plan.json: a: shape [4] is not [out, in]"),
        (entry(shape=[4, 0]), "plan.json: a: shape [4, 0] is not [out, in]"),
        (entry(energy="much"), "plan.json: a: energy 'much' is not a number"),
        (entry(form="svd"), "plan.json: a: form 'svd' is neither factors nor pivots"),
        (entry(form=["pivots"]), "plan.json: a: form ['pivots'] is neither factors nor pivots"),
        (entry() | {"unit": "bytes"}, "plan.json: unit 'bytes' is neither params nor flops"),
        (entry() | {"scope": "all"}, "plan.json: scope 'all' is neither model nor layers"),
        (entry() | {"limit": "lots"}, "plan.json: limit 'lots' is not a number"),
    ],
)
def test_a_broken_plan_is_named(document, message):
    with pytest.raises(RequestError) as caught:
        from_document(document, "plan.json")
    assert str(caught.value).startswith(message)


def test_a_plan_is_checked_against_the_model(chosen):
    shapes = {name: la.shape for name, la in chosen.layers.items()} | {"head": (10, 16)}
    check(chosen, shapes, "plan.json")
    without = {k: v for k, v in shapes.items() if k != "blocks.0.mlp.fc1"}
    with pytest.raises(RequestError) as caught:
        check(chosen, without | {"blocks.0.mlp.fc2": (16, 64)}, "plan.json")
    assert str(caught.value) == (
        "plan.json: blocks.0.mlp.fc1: the model has no such layer; did you mean blocks.0.mlp.fc2?"
    )
    with pytest.raises(RequestError, match="is 16 × 16 in the plan and 16 × 32 in the model"):
        check(chosen, shapes | {"blocks.0.proj": (16, 32)}, "plan.json")
    too_high = Plan("by hand", "model", None, {"head": LayerPlan((10, 16), 11)})
    with pytest.raises(RequestError, match="head: rank 11 is above 10"):
        check(too_high, shapes, "plan.json")


def test_a_plan_prints_what_it_met(chosen):
    text = str(chosen)
    assert text.splitlines()[0] == (
        f"energy plan, ratio 2/3 of the model: {chosen.used:,} of 2,148 params "
        f"({chosen.used / 2148:.4f}), energy kept {chosen.energy:.4f}"
    )
    assert "blocks.0.proj      16 × 16  dense (pinned dense)" in text
    rank = chosen.ranks()["blocks.0.attn.qkv"]
    assert f"blocks.0.attn.qkv  48 × 16  rank {rank}, energy 0." in text
