"""``pela decompose``: its JSON, plans, pins and the artefact it replaces."""

from __future__ import annotations

import json

import pytest
import torch
from json_output import document
from safetensors.torch import load_file

import pelacli

LAYER = {"name", "shape", "rank", "reason", "energy", "params", "flops"}
COUNT = {"before", "after"}


def test_the_json_has_its_keys_and_the_true_size(pela, here):
    done = document(
        pela("decompose", "test_vit", "--weights", "random", "--ratio", "2/3", "-o", "a", "--json")
    )
    keys = {
        "artefact", "model", "policy", "params", "flops", "ratio", "energy", "seconds", "layers",
    }  # fmt: skip
    assert keys <= set(done)
    assert set(done["params"]) == set(done["flops"]) == COUNT
    assert done["ratio"] == pytest.approx(done["params"]["after"] / done["params"]["before"])
    assert 3 * done["params"]["after"] <= 2 * done["params"]["before"]
    for layer in done["layers"]:
        assert set(layer) >= LAYER
        assert (layer["rank"] is None) == (layer["reason"] is not None)
    real = sum(p.numel() for p in pelacli.load(here / "a").parameters())
    assert done["params"]["after"] == real


def test_ranks_edited_by_hand_are_used(pela, artefact, checkpoint, here):
    ask = ("decompose", checkpoint, "--arch", "test_vit", "--json")
    dry = document(pela(*ask, "--ratio", "0.6", "--dry-run"))
    assert dry["artefact"] is None
    assert not (here / "runs").exists()
    edited = next(layer for layer in dry["layers"] if layer["rank"])
    edited["rank"] = 5
    (here / "plan.json").write_text(json.dumps(dry))
    done = document(pela(*ask, "--plan", "plan.json", "-o", "b"))
    assert next(la for la in done["layers"] if la["name"] == edited["name"])["rank"] == 5
    assert load_file(here / "b/model.safetensors")[f"{edited['name']}.down.weight"].shape[0] == 5
    others = {la["name"]: la["rank"] for la in dry["layers"]}
    assert {la["name"]: la["rank"] for la in done["layers"]} == others


def test_a_plan_is_changed_to_pivots_by_hand_and_made(pela, here):
    ask = ("decompose", "test_vit", "--weights", "random", "--json")
    dry = document(pela(*ask, "--ratio", "0.6", "--form", "factors", "--dry-run"))
    assert {la["form"] for la in dry["layers"]} == {None, "factors"}
    edited = next(layer for layer in dry["layers"] if layer["rank"])
    edited["form"] = "pivots"
    (here / "plan.json").write_text(json.dumps(dry))
    shown = document(pela(*ask, "--plan", "plan.json", "--dry-run"))
    layer = next(la for la in shown["layers"] if la["name"] == edited["name"])
    assert layer["form"] == "pivots"
    saved = layer["rank"] ** 2
    assert layer["params"]["after"] == edited["params"]["after"] - saved
    assert layer["flops"]["after"] < edited["flops"]["after"]
    assert shown["params"]["after"] == dry["params"]["after"] - saved
    made = document(pela(*ask, "--plan", "plan.json", "-o", "b"))
    assert made["params"] == shown["params"]
    assert f"{edited['name']}.order" in load_file(here / "b/model.safetensors")


def test_pinned_and_excluded_layers_and_multiples_are_as_asked(pela, here):
    ask = ("decompose", "test_vit", "--weights", "random", "--ratio", "0.8", "--dry-run", "--json")
    done = document(
        pela(*ask, "--pin", "attn.proj=7", "--pin", r"blocks\.0\.=dense", "--exclude", "fc2",
             "--multiple", "4")
    )  # fmt: skip
    for layer in done["layers"]:
        if "fc2" in layer["name"]:
            assert layer["reason"] == "excluded"
        elif layer["name"].startswith("blocks.0."):
            assert layer["reason"] == "pinned dense"
        elif "attn.proj" in layer["name"]:
            assert layer["rank"] == 7
        elif layer["rank"] is not None:
            assert layer["rank"] % 4 == 0


def test_an_artefact_is_replaced_and_reloads_to_the_same_logits(pela, artefact, checkpoint):
    first = (artefact / "model.safetensors").read_bytes()
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        logits = pelacli.load(artefact)(x)
        assert torch.equal(pelacli.load(artefact)(x), logits)
    ask = ("decompose", checkpoint, "--arch", "test_vit", "-o", "a")
    assert pela(*ask, "--ratio", "0.6")[0] == 0
    assert (artefact / "model.safetensors").read_bytes() != first
    assert pela(*ask, "--ratio", "0.5")[0] == 0
    assert (artefact / "model.safetensors").read_bytes() == first
    assert [p.name for p in artefact.parent.iterdir()] == ["a"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_artefact(pela, artefact, checkpoint, monkeypatch, failure):
    """The model card is the last file of an artefact, so all others are written by then."""
    before = {path.name: path.read_bytes() for path in artefact.iterdir()}

    def fails(*_):
        raise failure

    monkeypatch.setattr("pelacli.artefact.card.model_card", fails)
    code, out, err = pela(
        "decompose", checkpoint, "--arch", "test_vit", "--ratio", "0.7", "-o", "a"
    )
    assert out == ""
    if isinstance(failure, OSError):
        says = "No space left on device; free some space, or choose another disk"
        assert (code, err) == (1, f"pela: error: a: can't be written: {says}\n")
    else:
        assert (code, err) == (130, "pela: error: interrupted\n")
    assert {path.name: path.read_bytes() for path in artefact.iterdir()} == before
    assert [path.name for path in artefact.parent.iterdir()] == ["a"]
