"""A model that names its classes is judged, and trained, by these names."""

from __future__ import annotations

import json
import math

import pytest
import torch
import transformers
from PIL import Image

import pelacli
from pelacli.artefact import description, loading, saving
from pelacli.artefact.loading import Artefact
from pelacli.errors import GateError, RequestError
from pelacli.lowrank import find
from pelacli.models import class_names, heads, wrapping
from pelacli.recipe.data import Augment, Data
from pelacli.recipe.schema import Recipe
from pelacli.recipe.step import step_of
from pelacli.steps import eval as steps_eval
from pelacli.steps import finetune, gate
from pelacli.tasks import registry
from pelacli.train.splits import open_splits

SHAPE = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip


def vit(*names: str):
    """A tiny ViT with classes of these names."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SHAPE, id2label=dict(enumerate(names)))
    return wrapping.wrap(transformers.ViTForImageClassification(config).eval())


@pytest.fixture
def folders(tmp_path):
    """Grey images in a folder for each class: "bird" 0, "cat" 10, "dog" 20."""
    for split in ("train", "validation"):
        for grey, name in ((0, "bird"), (10, "cat"), (20, "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (grey,) * 3).save(tmp_path / split / name / "a.png")
    return Data(dataset=str(tmp_path), augment=Augment(none=True))


def numbers(opened, data, training=False):
    """The class number of each sample, in the order of the folders."""
    split = "train" if training else "validation"
    task = registry.get("image-classification")
    found = task.open(data, split, inputs=opened.inputs, training=training)
    return [found[i]["labels"] for i in range(len(found))], found


def test_folders_get_the_numbers_that_the_model_gives_their_names(folders):
    for training in (True, False):
        found, dataset = numbers(vit("dog", "Cat ", "bird"), folders, training)
        assert (found, dataset.classes) == ([2, 1, 0], ["dog", "Cat ", "bird"])
        assert numbers(vit("LABEL_0", "LABEL_1", "LABEL_2"), folders, training)[0] == [0, 1, 2]
    assert numbers(vit("dog", "cat", "fish"), folders, True)[0] == [0, 1, 2]  # for a fresh head
    with pytest.raises(RequestError, match="the model has no class 'bird', but dog, cat, fish"):
        numbers(vit("dog", "cat", "fish"), folders, False)


def test_some_of_the_models_classes_are_judged_among_all_and_learned_alone(folders):
    opened = vit("fish", "dog", "cat", "bird")
    assert numbers(opened, folders)[0] == [3, 2, 1]
    found, dataset = numbers(opened, folders, training=True)
    assert found == [0, 1, 2]
    fitted = registry.get("image-classification").fit(opened, dataset, None, 0)
    assert heads.num_classes(fitted) == 3
    assert fitted.inputs.labels == ("bird", "cat", "dog")
    assert fitted.config["id2label"] == {"0": "bird", "1": "cat", "2": "dog"}


@pytest.mark.parametrize("num_classes", [None, 3, 4, 6])
def test_fine_tuning_on_some_of_the_models_classes_numbers_both_splits_alike(
    folders, tmp_path, num_classes
):
    opened = vit("fish", "dog", "cat", "bird")
    recipe = Recipe.model_validate(
        {
            "model": "m", "output": str(tmp_path / "run"), "data": folders.model_dump(),
            "finetune": {"steps": 1}, "num_classes": num_classes,
        }
    )  # fmt: skip
    step = step_of(recipe, "finetune")
    layers = find.find_layers(opened.module, head=opened.head)
    manifest = description.describe(opened, layers, description.cost(opened, layers))
    fitted = finetune._fit(step, Artefact(opened, manifest))
    splits = open_splits(step, fitted.opened)
    for loader in (splits.train, splits.validation):
        assert [loader.dataset[i]["labels"] for i in range(3)] == [0, 1, 2]
    names = ["bird", "cat", "dog", "class 3", "class 4", "class 5"][: num_classes or 3]
    assert list(fitted.opened.inputs.labels) == names
    assert fitted.opened.config["id2label"] == {str(n): name for n, name in enumerate(names)}
    assert heads.num_classes(fitted.opened) == len(names)
    head = fitted.module.classifier
    again = finetune._fit(step, fitted)  # as a later step does
    assert again.module.classifier is head


def test_other_classes_of_the_same_number_get_a_fresh_head_and_their_names(folders):
    opened = vit("bus", "car", "tram")
    before = opened.module.classifier.weight.clone()
    dataset = numbers(opened, folders, training=True)[1]
    fitted = registry.get("image-classification").fit(opened, dataset, None, 0)
    assert not torch.equal(fitted.module.classifier.weight, before)
    assert fitted.inputs.labels == ("bird", "cat", "dog")


def test_names_are_written_where_there_were_none_and_the_head_stays(folders):
    opened = vit("LABEL_0", "LABEL_1", "LABEL_2")
    before = opened.module.classifier.weight.clone()
    dataset = numbers(opened, folders, training=True)[1]
    fitted = registry.get("image-classification").fit(opened, dataset, None, 0)
    assert torch.equal(fitted.module.classifier.weight, before)
    assert fitted.inputs.labels == ("bird", "cat", "dog")


def test_names_that_come_twice_tell_nothing():
    assert class_names.positions(["crane", "dog"], ["crane", "dog", "crane"]) == [2, 1]
    assert class_names.positions(["crane", "crane"], ["crane", "dog"]) is None
    assert class_names.positions([], ["dog"]) is None


def test_a_drop_that_is_no_number_does_not_pass_the_gate():
    evaluated = steps_eval.Evaluated(
        "a", 1, 4, None, {}, drop=math.nan, max_drop=1.0, main_metric="accuracy"
    )
    with pytest.raises(GateError, match="accuracy drops by nan points"):
        gate.check([evaluated])


def timms_vit(**about):
    import timm

    torch.manual_seed(0)
    size = {"img_size": 8, "patch_size": 4, "num_classes": 3}
    model = timm.create_model("test_vit", **size, pretrained_cfg_overlay=about)
    return wrapping.wrap(model.eval())


def test_a_fine_tuned_timm_classifier_keeps_the_names_where_timm_reads_them(folders, tmp_path):
    import timm

    opened = timms_vit()
    before = opened.module.head.weight.clone()
    dataset = numbers(opened, folders, training=True)[1]
    fitted = registry.get("image-classification").fit(opened, dataset, None, 0)
    assert torch.equal(fitted.module.head.weight, before)  # the head had as many classes
    layers = find.find_layers(fitted.module, head=fitted.head)
    saving.save(fitted, description.describe(fitted, layers, None), tmp_path / "a")
    back = loading.load(tmp_path / "a")
    pelacli.save(pelacli.load(tmp_path / "a"), tmp_path / "b")
    assert back.opened.inputs.labels == ("bird", "cat", "dog")
    for name in ("a", "b"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["label_names"] == ["bird", "cat", "dog"]
        theirs = timm.create_model(f"local-dir:{tmp_path / name}", pretrained=False)
        assert list(theirs.pretrained_cfg["label_names"]) == ["bird", "cat", "dog"]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["dog", "cat", "bird"], [2, 1, 0]),
        ({"0": "dog", "1": "bird", "2": "cat"}, [1, 2, 0]),
        ({0: "dog", 1: "bird", 2: "cat"}, [1, 2, 0]),
        ({"0": "dog", "7": "bird", "9": "cat"}, [0, 1, 2]),
        (["dog", "cat"], [0, 1, 2]),
        (["dog", "cat", None], [0, 1, 2]),
        (None, [0, 1, 2]),
    ],
)
def test_a_timm_model_is_judged_by_its_own_names_where_it_has_one_for_each_class(
    folders, names, wanted
):
    opened = timms_vit(label_names=names)
    assert numbers(opened, folders)[0] == wanted


def test_other_names_take_the_place_of_a_timm_models_own(folders):
    opened = timms_vit(label_names=["a", "b", "c"], label_descriptions={"a": "A"})
    assert opened.config["label_names"] == ["a", "b", "c"]
    dataset = numbers(opened, folders, training=True)[1]
    fitted = registry.get("image-classification").fit(opened, dataset, None, 0)
    assert fitted.config["label_names"] == ["bird", "cat", "dog"]
    assert "label_descriptions" not in fitted.config
