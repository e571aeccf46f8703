"""The recipe's num_classes against the classes of the data, in every task that has classes."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import drawn_boxes
import drawn_masks
import generated_text
import pair_world as world
import pytest
import torch
import transformers

from pelacli.artefact import loading
from pelacli.data.loader import loader
from pelacli.errors import RequestError
from pelacli.models import class_names, heads, opening, wrapping
from pelacli.models.opened import OpenModel
from pelacli.recipe.data import Augment, Data
from pelacli.tasks import base, registry

VIT = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
HF_VIT = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
SEGFORMER = {
    "num_encoder_blocks": 1, "depths": [1], "sr_ratios": [1], "hidden_sizes": [16],
    "patch_sizes": [7], "strides": [4], "num_attention_heads": [2], "mlp_ratios": [2],
    "decoder_hidden_size": 16, "image_size": 32,
}  # fmt: skip
QUERIES = {"num_detection_tokens": 3, "use_mid_position_embeddings": False}
UPERNET = {"channels": 8, "pool_scales": [1], "auxiliary": 0.0}


@dataclass
class Case:
    """A task, a model for it, and data whose classes are known.

    Attributes:
        model: folder → the model.
        write: writes the data into a folder, with the splits "train" and "val".
        count: classes of the data.
    """

    task: str
    model: Callable[[Path], OpenModel]
    write: Callable[[Path], Any]
    count: int
    args: dict[str, Any]
    image_size: int | None = None


def timm_vit(folder: Path) -> OpenModel:
    return opening.open("vit_tiny_patch16_224", weights="random", model_args=VIT, num_classes=7)


def built(kind: str, config: Any) -> Callable[[Path], OpenModel]:
    """A transformers model with fresh weights and seven classes."""

    def build(folder: Path) -> OpenModel:
        torch.manual_seed(0)
        seven = copy.deepcopy(config)
        seven.num_labels = 7
        return wrapping.wrap(getattr(transformers, kind)(seven).eval())

    return build


def saved(write: Callable[..., Path], *args: Any) -> Callable[[Path], OpenModel]:
    """A model that a helper writes into a folder."""
    return lambda folder: opening.open(str(write(*args, folder)))


def encoder(folder: Path) -> OpenModel:
    return opening.open(str(generated_text.save_model("bert", "", folder)))


def pretrained_albef(folder: Path) -> OpenModel:
    return opening.open(str(world.albef(folder, "pretrain")))


def kinds(folder: Path) -> None:
    drawn_masks.write_kinds(folder, {"train": 24, "val": 24})


def masks(folder: Path) -> None:
    drawn_masks.write(folder, {"train": 4, "val": 4})


def boxes(folder: Path) -> None:
    drawn_boxes.write(folder, {"train": 8, "val": 4})


def texts(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for number, split in enumerate(("train", "val")):
        rows = generated_text.labelled(40, number)
        generated_text.write(folder / f"{split}.jsonl", rows)


def questions(folder: Path) -> None:
    for name in ("train", "val"):
        world.questions(folder, 1, name=name)


def claims(folder: Path) -> None:
    for name in ("train", "val"):
        world.claims(folder, 1, name=name)


yolos = built(
    "YolosForObjectDetection",
    transformers.YolosConfig(**HF_VIT | {"image_size": [32, 32]} | QUERIES),
)
hf_vit = built("ViTForImageClassification", transformers.ViTConfig(**HF_VIT))
segformer = built("SegformerForSemanticSegmentation", transformers.SegformerConfig(**SEGFORMER))
vilt = saved(world.model, "ViltForMaskedLM")
ANSWERS = len([*world.ANSWERS, "a thing"])
CASES = {
    "image": Case("image-classification", timm_vit, kinds, 3, {}),
    "image-hf": Case("image-classification", hf_vit, kinds, 3, {}),
    "text": Case("text-classification", encoder, texts, 4, {}),
    "segmentation-around": Case("segmentation", timm_vit, masks, 4, UPERNET),
    "segmentation-hf": Case("segmentation", segformer, masks, 4, {}),
    "detection": Case("detection", yolos, boxes, 2, {}, 32),
    "detection-around": Case("detection", hf_vit, boxes, 2, {"queries": 3}, 32),
    "vqa": Case("vqa", vilt, questions, ANSWERS, {}),
    "entailment": Case("entailment", vilt, claims, 3, {}),
    "entailment-albef": Case("entailment", pretrained_albef, claims, 3, {}),
}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def open_split(case: Case, model: OpenModel, folder: Path, split: str):
    data = Data(dataset=str(folder), image_size=case.image_size, augment=Augment(none=True))
    return registry.get(case.task, case.args).open(data, split, inputs=model.inputs)


def test_more_classes_than_the_data_has_make_a_head_of_so_many(case, tmp_path):
    case.write(tmp_path / "data")
    model = case.model(tmp_path / "m")
    task = registry.get(case.task, case.args)
    count = case.count + 2
    fitted = task.fit(model, open_split(case, model, tmp_path / "data", "train"), count, 0)
    assert heads.num_classes(fitted) == count
    again = task.fit(fitted, open_split(case, fitted, tmp_path / "data", "train"), count, 0)
    assert again.module is fitted.module  # it has the head already

    held_out = open_split(case, fitted, tmp_path / "data", "val")
    batches = loader(held_out, batch_size=8, num_classes=count)
    if case.task != "detection":  # whose loss is another output, in training
        batch = next(iter(batches))
        losses = base.losses(task, task.forward(fitted.module, batch), batch)
        assert all(math.isfinite(float(value.detach())) for value in losses.values())
    figures = base.evaluate(fitted.module, batches, task, num_classes=count)
    assert 0 <= figures[task.MAIN] <= 100


def test_fewer_classes_than_the_data_has_are_refused(case, tmp_path):
    case.write(tmp_path / "data")
    model = case.model(tmp_path / "m")
    before = (model.module, heads.num_classes(model), dict(model.config))
    dataset = open_split(case, model, tmp_path / "data", "train")
    with pytest.raises(RequestError) as error:
        registry.get(case.task, case.args).fit(model, dataset, case.count - 1, 0)
    assert str(error.value) == (
        f"num_classes = {case.count - 1}: {tmp_path / 'data'} has {case.count} classes; set it to "
        f"{case.count} or more, or leave it out"
    )
    assert (model.module, heads.num_classes(model), dict(model.config)) == before


def test_as_many_classes_as_the_data_has_are_the_data_s(case, tmp_path):
    case.write(tmp_path / "data")
    model = case.model(tmp_path / "m")
    task = registry.get(case.task, case.args)
    dataset = open_split(case, model, tmp_path / "data", "train")
    fitted = task.fit(model, dataset, case.count, 0)
    assert heads.num_classes(fitted) == case.count
    dataset = open_split(case, fitted, tmp_path / "data", "train")
    assert task.fit(fitted, dataset, None, 0).module is fitted.module


def test_a_score_is_one_output(tmp_path):
    rows = [{"text": "w1 w2", "score": 0.5}, {"text": "k1", "score": 1.5}]
    file = generated_text.write(tmp_path / "train.jsonl", rows)
    model, task = encoder(tmp_path / "m"), registry.get("text-regression")
    dataset = task.open(Data(dataset=str(file)), "train", inputs=model.inputs)
    with pytest.raises(RequestError, match="num_classes = 3: text regression has one output"):
        task.fit(model, dataset, 3, 0)
    assert heads.num_classes(task.fit(model, dataset, 1, 0)) == 1


# A model that names more classes than the data has ----------------------------------------------


def test_a_head_for_some_of_an_image_model_s_classes(tmp_path):
    kinds(tmp_path / "data")
    model = hf_vit(tmp_path)
    class_names.write(model, ["dog", "down", "cat", "across", "chequered", "bus", "car"])
    task = registry.get("image-classification")
    data = Data(dataset=str(tmp_path / "data"), augment=Augment(none=True))
    dataset = task.open(data, "train", inputs=model.inputs)
    assert dataset.own_classes == ["across", "chequered", "down"]
    with pytest.raises(RequestError, match=r"num_classes = 2: .* has 3 classes"):
        task.fit(model, dataset, 2, 0)
    fitted = task.fit(model, dataset, 3, 0)
    assert fitted.inputs.labels == ("across", "chequered", "down")
    assert heads.num_classes(fitted) == 3


def test_a_head_for_some_of_a_detector_s_classes(tmp_path):
    boxes(tmp_path / "data")
    model = yolos(tmp_path)
    class_names.write(model, ["N/A", "disc", "N/A", "cat", "N/A", "square", "dog"])
    task = registry.get("detection")
    data = Data(dataset=str(tmp_path / "data"), image_size=32, augment=Augment(none=True))
    dataset = task.open(data, "train", inputs=model.inputs)
    with pytest.raises(RequestError, match=r"num_classes = 1: .* has 2 classes"):
        task.fit(model, dataset, 1, 0)
    fitted = task.fit(model, dataset, 3, 0)
    assert fitted.inputs.labels == ("square", "disc", "class 2")
    assert heads.num_classes(fitted) == 3


def test_a_head_for_some_of_a_text_model_s_classes(tmp_path):
    texts(tmp_path / "data")
    names = dict(enumerate(["red", "pink", "blue", "green", "yellow", "grey"]))
    folder = generated_text.save_model("bert", "SequenceClassification", tmp_path / "m",
                                       id2label=names)  # fmt: skip
    model, task = opening.open(str(folder)), registry.get("text-classification")
    dataset = task.open(Data(dataset=str(tmp_path / "data")), "train", inputs=model.inputs)
    assert dataset.own_classes == ["blue", "green", "red", "yellow"]
    assert task.fit(model, dataset, 6, 0) is model
    with pytest.raises(RequestError, match=r"num_classes = 3: .* has 4 classes"):
        task.fit(model, dataset, 3, 0)
    fitted = task.fit(model, dataset, 5, 0)
    assert fitted.inputs.classes == ("blue", "green", "red", "yellow", "4")


def test_a_model_s_own_answers_count_where_the_recipe_says_their_number(tmp_path):
    """Not every answer that people gave is a class."""
    questions(tmp_path / "data")
    names = dict(enumerate([*world.ANSWERS[:4], "maybe"]))
    folder = world.model("ViltForQuestionAnswering", tmp_path / "m", id2label=names)
    model, task = opening.open(str(folder)), registry.get("vqa")
    dataset = task.open(Data(dataset=str(tmp_path / "data")), "train", inputs=model.inputs)
    module = model.module
    assert task.fit(model, dataset, 5, 0).module is module
    with pytest.raises(RequestError, match=r"num_classes = 4: .* has 11 classes"):
        task.fit(model, dataset, 4, 0)
    assert heads.num_classes(task.fit(model, dataset, 7, 0)) == 7


# The whole way -----------------------------------------------------------------------------------


def test_a_recipe_s_number_goes_through_all_steps(here, pela):
    """A segmenter with two classes that no pixel has is healed with labels, and judged."""
    masks(here / "data")
    (here / "r.toml").write_text(
        'model = "vit_tiny_patch16_224"\nweights = "random"\noutput = "run"\n'
        'task = "segmentation"\nnum_classes = 6\ndevice = "cpu"\n'
        "model_args = { img_size = 32, patch_size = 4, embed_dim = 32, depth = 2, num_heads = 2 }\n"
        "task_args = { channels = 8, pool_scales = [1], auxiliary = 0.0 }\n"
        '[data]\ndataset = "data"\nbatch_size = 4\naugment = { none = true }\n'
        "[teacher]\nsteps = 1\n[decompose]\nratio = 0.8\n[pretrain]\nsteps = 1\nlr = 1e-3\n"
        "[finetune]\nsteps = 1\n[eval]\nlatency = false\n"
    )
    code, out, err = pela("run", "r.toml", "--json")
    assert code == 0, err
    assert 0 <= json.loads(out)["eval"]["metrics"]["miou"] <= 100
    for step in ("dense", "decompose", "pretrain", "finetune"):
        opened = loading.load(here / "run" / step).opened
        assert heads.num_classes(opened) == 6, step
    [last] = loading.load(here / "run/pretrain").manifest.history[-1:]
    assert "task" in last.metrics["losses"]  # healed with labels
    code, _, err = pela("run", "r.toml", "--set", "num_classes=3", "--set", 'output="other"')
    assert code == 2
    assert err.endswith(
        "num_classes = 3: data has 4 classes; set it to 4 or more, or leave it out\n"
    )
