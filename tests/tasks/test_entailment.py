"""Visual entailment: formats, heads, learning."""

from __future__ import annotations

import json
from pathlib import Path

import pair_world as world
import pytest
import torch
import torch.nn.functional as F

from pelacli.artefact import loading
from pelacli.data.formats import entailment
from pelacli.data.loader import loader
from pelacli.errors import RequestError
from pelacli.models import heads, opening
from pelacli.models.pairs.families import view_of
from pelacli.recipe.data import Augment, Data
from pelacli.tasks import base, registry

QUIET = Augment(none=True)


def batches(folder: Path, model, split: str = "train", size: int = 8):
    data = Data(dataset=str(folder), augment=QUIET)
    dataset = registry.get("entailment").open(data, split, inputs=model.inputs)
    return loader(dataset, batch_size=size)


@pytest.mark.parametrize("library", ["transformers", "albef"])
def test_a_head_of_three_classes_is_made_and_trained_by_cross_entropy(tmp_path, library):
    world.claims(tmp_path / "data", 1)
    model = (
        opening.open(str(world.model("ViltForMaskedLM", tmp_path / "m")))
        if library == "transformers"
        else opening.open(str(world.albef(tmp_path / "m", "pretrain")))
    )
    task = registry.get("entailment")
    data = Data(dataset=str(tmp_path / "data"), augment=QUIET)
    dataset = task.open(data, "train", inputs=model.inputs, training=True)
    before = {id(p) for p in model.module.parameters()}
    model = task.fit(model, dataset, None, seed=3)
    assert heads.num_classes(model) == 3
    assert sum(id(p) in before for p in model.module.parameters()) > 40
    again = task.fit(model, dataset, None, seed=3)
    assert again.module is model.module
    batch = next(iter(batches(tmp_path / "data", model)))
    assert batch["labels"].tolist() == [2, 0, 1, 2, 0, 1, 2, 0]
    output = task.forward(model.module, batch)
    wanted = F.cross_entropy(model.module(**batch["inputs"])["logits"], batch["labels"])
    assert torch.allclose(task.loss(output, batch), wanted)
    found = base.evaluate(model.module, batches(tmp_path / "data", model), task)
    with torch.no_grad():
        right = [
            (model.module(**b["inputs"])["logits"].argmax(1) == b["labels"]).float()
            for b in batches(tmp_path / "data", model)
        ]
    assert found["accuracy"] == pytest.approx(100 * float(torch.cat(right).mean()))


def test_models_without_a_classifier_refuse(tmp_path):
    for kind in ("CLIPModel", "BlipForImageTextRetrieval"):
        model = opening.open(str(world.model(kind, tmp_path / kind)))
        with pytest.raises(RequestError, match=f"{kind}: this kind of model can't entailment"):
            view_of(model.module).fit("entailment", classes=3)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image": 1, "sentence": "x", "label": "maybe"}, "label 'maybe' is none of contradiction"),
        ({"image": 1, "sentence": "x", "label": 3}, "entry 1: label 3 is none of"),
        ({"image": 1, "sentence": "x"}, "entry 1: label None is none of"),
        ({"image": 1, "label": 0}, "entry 1: no field 'sentence'"),
        ({"sentence": "x", "label": 0}, "entry 1: no field 'image'"),
    ],
)
def test_mistakes_in_files_are_named(tmp_path, entry, message):
    (tmp_path / "train.json").write_text(json.dumps([entry]))
    model = opening.open(str(world.model("ViltForQuestionAnswering", tmp_path / "m")))
    with pytest.raises(RequestError) as error:
        batches(tmp_path, model)
    assert message in str(error.value)


def test_numbers_of_images_and_of_labels_are_as_good_as_names(tmp_path):
    (tmp_path / "pictures").mkdir()
    image = world.draw([world.THINGS[0]], 0)[0]
    image.save(tmp_path / "pictures" / "17.jpg")
    rows = [{"image": 17, "sentence": "x", "label": 2}, {"image": "17.jpg", "sentence": "x",
            "label": "entailment"}]  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(rows))
    model = opening.open(str(world.model("ViltForQuestionAnswering", tmp_path / "m")))
    task = registry.get("entailment", {"images": str(tmp_path / "pictures")})
    data = Data(dataset=str(tmp_path), augment=QUIET)
    one, other = (task.open(data, "train", inputs=model.inputs)[i] for i in range(2))
    assert one["label"] == other["label"] == 2
    assert torch.equal(one["image"], other["image"])


def test_entries_whose_annotators_disagree_are_left_out(tmp_path):
    labels = ["-", "Entailment", None, 0, -1]
    rows = [{"image": str(i), "sentence": "x", "label": v} for i, v in enumerate(labels)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    found, _ = entailment.read(str(tmp_path), "train", None)
    assert [(Path(one.image).stem, one.label) for one in found] == [("1", 2), ("3", 0)]
    assert found[1].where.endswith("entry 4")
    (tmp_path / "train.json").write_text(json.dumps(rows[:1]))
    with pytest.raises(RequestError, match=r"train.json: no entries with a label"):
        entailment.read(str(tmp_path), "train", None)


def hub(folder: Path, rows: dict, label) -> str:
    """A split "train" of a hub dataset with images."""
    import datasets

    features = datasets.Features(
        image=datasets.Image(), hypothesis=datasets.Value("string"), label=label
    )
    folder.mkdir()
    made = datasets.Dataset.from_dict({"hypothesis": ["x"] * 4, **rows}, features=features)
    made.to_parquet(folder / "train.parquet")
    return f"hfds/{folder}"


def test_numbers_of_the_hub_mean_what_their_dataset_calls_them(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    picture = world.draw([world.THINGS[0]], 0)[0]
    rows = {"image": [picture, picture, picture, None], "label": [0, -1, 2, 1]}
    snli = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    spec = hub(tmp_path / "snli", rows, snli)
    found, split = entailment.read(spec, "train", None)
    names = [entailment.LABELS[one.label] for one in found]
    assert (names, split) == (["entailment", "contradiction", "neutral"], "train")
    assert [one.where for one in found] == [f"{spec}, row {i}" for i in (0, 2, 3)]
    assert found[0].image.read()
    with pytest.raises(RequestError, match="row 3: has no image"):
        found[2].image.read()
    rows["label"] = ["neutral", "-", "entailment", None]
    spec = hub(tmp_path / "words", rows, datasets.Value("string"))
    assert [one.label for one in entailment.read(spec, "train", None)[0]] == [1, 2]


RECIPE = """
model = "m"
output = "run"
task = "entailment"

[data]
dataset = "data"
batch_size = 16

[data.augment]
none = true

[teacher]
epochs = 18
lr = 1e-3
warmup_epochs = 1
eval_every = 100

[decompose]
ratio = 0.7

[pretrain]
epochs = 8
lr = 1e-3
eval_every = 100

[finetune]
epochs = 3
lr = 3e-4
eval_every = 100
"""


@pytest.mark.slow
def test_vilt_learns_falls_and_comes_back(pela, here):
    """Whether a sentence is about a colour at all is worth 67; which colour it is, the rest."""
    world.model("ViltForQuestionAnswering", here / "m")
    world.claims(here / "data", 4)
    world.claims(here / "data", 1, seed=9_000_000, name="val")
    (here / "r.toml").write_text(RECIPE)
    code, _, err = pela("run", "r.toml")
    assert code == 0, err
    scores = {}
    for step in ("dense", "decompose", "pretrain", "finetune"):
        found = loading.load(here / "run" / step)
        on = batches(here / "data", found.opened, "val", 48)
        scores[step] = base.evaluate(found.module, on, registry.get("entailment"))["accuracy"]
    print(scores)
    assert scores["dense"] > 90
    assert scores["decompose"] < scores["dense"] - 15
    assert scores["finetune"] > scores["dense"] - 5
