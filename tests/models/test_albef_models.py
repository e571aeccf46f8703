"""ALBEF through pela's own doors: open, decompose, save, load, report."""

from __future__ import annotations

import json

import albef_world as world
import pytest
import torch
from albef_tiny import TINY, pairs, tiny
from safetensors.torch import load_file

import pelacli
from pelacli.artefact import loading
from pelacli.data.loader import loader
from pelacli.errors import RequestError
from pelacli.lowrank import find
from pelacli.models import heads, opening, prediction, wrapping
from pelacli.models.albef import checkpoint
from pelacli.models.albef.network import Albef
from pelacli.recipe.data import Data
from pelacli.tasks import registry

HEADS = {"vision_heads": 2, "text_heads": 2}


def original(folder, variant="pretrain"):
    """An original checkpoint with its tokenizer, and something that does not belong to it."""
    network = tiny(variant).eval()
    file = folder / "ALBEF.pth"
    torch.save({"model": checkpoint.to_original(network), "epoch": 29}, file)
    (folder / "vocab.txt").write_text("\n".join([*world.SPECIAL, *(f"w{i}" for i in range(35))]))
    (folder / "coco.json").write_text("[]")
    return network, file


@pytest.mark.parametrize("variant", ["pretrain", "retrieval", "entailment", "vqa"])
def test_an_artefact_comes_back(here, variant):
    opened = opening.open("albef", weights="random", model_args={"variant": variant, **TINY})
    low = pelacli.decompose(opened.module, ratio=0.6)
    assert low.layers
    pelacli.save(opened.module, here / "a")
    found = pelacli.load(here / "a")
    assert isinstance(found, Albef)
    assert found.config == opened.module.config
    assert find.low_rank_layers(found)
    inputs = pairs()
    if variant == "vqa":
        inputs["decoder_input_ids"] = inputs["input_ids"]
    for ours, theirs in zip(
        found(**inputs).values(), opened.module(**inputs).values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    for side in ("text_encoder", "text_decoder"):
        words = getattr(getattr(found, side, None), "cls", None)
        if words is not None:
            table = getattr(found, side).bert.embeddings.word_embeddings.weight
            assert words.predictions.decoder.weight is table


def test_an_original_checkpoint_is_decomposed(here, pela):
    network, file = original(here)
    code, out, err = pela(
        "decompose", file, "--arch", "albef", "--ratio", "0.5", "-o", "a", "--json",
        "--set", "model_args.vision_heads=2", "--set", "model_args.text_heads=2",
    )  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert told["params"]["before"] == sum(p.numel() for p in network.parameters())
    assert sorted(p.name for p in (here / "a").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "pela.json", "spectra.safetensors",
        "vocab.txt",
    ]  # fmt: skip
    loaded = loading.load(here / "a")
    assert loaded.opened.inputs.text.tokenizer.mask_token_id == 4
    assert loaded.opened.inputs.image.size == (3, 32, 32)
    assert json.loads((here / "a/config.json").read_text())["pela_model"] == "albef"
    code, out, _ = pela("report", "a", "--json")
    assert code == 0
    assert json.loads(out)[0]["params"] == told["params"]


def test_weights_by_flag_and_other_sizes(here):
    network, file = original(here)
    opened = opening.open("albef", weights=str(file), model_args={**HEADS, "image_size": 48})
    assert opened.inputs.image.size == (3, 48, 48)
    assert opened.source.digest
    assert opened.carried.keys() == {"vocab.txt"}
    plain = opening.open("albef", weights=str(file), model_args=HEADS)
    inputs = pairs()
    expected = network(**inputs)["last_hidden_state"]
    assert torch.equal(plain.module(**inputs)["last_hidden_state"], expected)


def test_a_variant_is_made_of_a_pretraining_checkpoint(here):
    _, file = original(here)
    classes = opening.open(
        "albef", weights=str(file), model_args={**HEADS, "variant": "entailment"}, num_classes=5
    )
    assert heads.num_classes(classes) == 5
    assert classes.head == {"cls_head"}
    assert classes.module(**pairs())["logits"].shape == (6, 5)
    heads.set_classes(classes, 2, seed=0)
    assert classes.config["num_classes"] == 2
    assert classes.module(**pairs())["logits"].shape == (6, 2)
    answers = opening.open("albef", weights=str(file), model_args={**HEADS, "variant": "vqa"})
    assert "text_decoder.cls" in answers.head
    assert heads.num_classes(answers) is None


def test_a_directory_is_opened_with_its_tokenizer(here):
    folder = world.model(here / "tiny")
    opened = opening.open(str(folder))
    assert opened.library == "albef"
    assert opened.inputs.text.tokenizer("a red bar")["input_ids"][1:-1] == [5, 7, 16]
    stored = load_file(folder / "model.safetensors")
    own = dict(opened.module.named_parameters())
    assert own.keys() == stored.keys()
    assert all(torch.equal(own[name], tensor) for name, tensor in stored.items())
    (folder / "model.safetensors").unlink()
    with pytest.raises(RequestError, match="no safetensors weights; use --weights random"):
        opening.open(str(folder))
    assert opening.open(str(folder), weights="random").params == opened.params


def test_a_checkpoint_without_its_architecture_is_refused_with_the_remedy(here):
    _, file = original(here)
    with pytest.raises(RequestError, match="a checkpoint of albef needs --arch"):
        opening.open(str(file))


def test_shapes_alone_need_no_memory():
    opened = opening.open("albef", weights="random", meta=True)
    assert opened.params == 209_937_725
    assert all(p.is_meta for p in opened.module.parameters())


def test_a_module_in_hand_is_wrapped():
    opened = wrapping.wrap(tiny())
    assert (opened.library, opened.source.library) == ("albef", "albef")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "albef: give its checkpoint with --weights FILE, or random"),
        (
            {"weights": "random", "model_args": {"fusion_layers": 3}},
            "model_args: ALBEF has no setting 'fusion_layers'; did you mean fusion_layer?",
        ),
        (
            {"weights": "random", "num_classes": 3},
            "num_classes: ALBEF's 'pretrain' has no classifier",
        ),
    ],
)
def test_a_wrong_request_is_named(how, message):
    with pytest.raises(RequestError) as caught:
        opening.open("albef", **how)
    assert message in str(caught.value)


def test_calibrated_on_pairs(here, pela):
    """Moments and correction go through both streams of the model."""
    world.draw(here / "data", "train", 24, 0)
    world.draw(here / "data", "val", 12, 1)
    world.model(here / "tiny")
    (here / "r.toml").write_text(
        'model = "tiny"\noutput = "runs"\ntask = "vision-language"\n'
        '[data]\ndataset = "data"\nbatch_size = 8\n'
        '[decompose]\nratio = 0.5\ncalibrate = "train"\nsamples = 24\n'
    )
    code, _, err = pela("run", "r.toml")
    assert code == 0, err
    dense, low = opening.open("tiny").module, loading.load(here / "runs/decompose").module
    uncalibrated = opening.open("tiny")
    pelacli.decompose(uncalibrated.module, ratio=0.5)
    task = registry.get("vision-language")
    held_out = task.open(Data(dataset="data"), "val", inputs=uncalibrated.inputs)
    inputs = next(iter(loader(held_out, batch_size=12)))["inputs"]
    with torch.no_grad():
        outputs = [prediction.predict(m, inputs) for m in (dense, low, uncalibrated.module)]
    errors = [float((o - outputs[0]).square().sum()) for o in outputs[1:]]
    assert errors[0] < 0.7 * errors[1]
