"""``pela recipes check`` looks for the model and the data, and says where in the recipe they are
named."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from refusals import refused as refused
from safetensors.torch import save_file

RECIPE = """model = "test_vit"
weights = "random"
output = "r"
[data]
dataset = "images"
[teacher]
[decompose]
calibrate = "train"
[pretrain]
[finetune]
[eval]
"""


@pytest.fixture
def recipe(here) -> Path:
    for split in ("train", "validation"):
        for name in ("dark", "light"):
            (here / "images" / split / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(here / "images" / split / name / "0.png")
    (here / "bare").mkdir()
    (here / "pets.csv").write_text("text,label\na,b\n")
    save_file({}, here / "empty.safetensors")
    (here / "r.toml").write_text(RECIPE)
    return here / "r.toml"


def test_a_recipe_whose_model_and_data_are_there_is_ok(pela, recipe):
    assert pela("recipes", "check", "r.toml") == (0, "r.toml: ok\n", "")
    assert not Path("r").exists()


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["model=test_vitt"], "--set model=test_vitt: test_vitt: unknown model; did you"),
        (["model=./nowhere"], "--set model=./nowhere: ./nowhere: there is no such file"),
        (["model=bare"], "--set model=bare: bare: has no config.json"),
        (["model=empty.safetensors"], "holds weights"),
        (["model=empty.safetensors", "weights=pretrained"], "needs --arch"),
        (["weights=w.safetensors"], "r.toml:1: model: weights w.safetensors: there is no"),
        (["model_args={ nonsense = 1 }"], "r.toml:1: model: test_vit: model_args don't fit"),
        (["data.dataset=nowhere"], "--set data.dataset=nowhere: unknown dataset 'nowhere'"),
        (["data.dataset=bare"], "--set data.dataset=bare: bare: no images in it"),
        (["data.dataset=pets.csv"], "--set data.dataset=pets.csv: pets.csv: is a file"),
        (["data.val=dev"], "--set data.val=dev: images: no split 'dev'; it has train, validation"),
        (["data.train=dev"], "--set data.train=dev: images: no split 'dev'"),
        (["eval.split=dev"], "--set eval.split=dev: images: no split 'dev'"),
        (["finetune.data.dataset=nowhere"], "--set finetune.data.dataset=nowhere: unknown dataset"),
        (["eval.data.dataset=nowhere"], "--set eval.data.dataset=nowhere: unknown dataset"),
        (["decompose.calibrate=nowhere"], "--set decompose.calibrate=nowhere: unknown dataset"),
        (["decompose.max_drop=1.0", "decompose.data.dataset=nowhere"],
         "--set decompose.data.dataset=nowhere: unknown dataset"),
        (["task=segmentatoin"], "--set task=segmentatoin: unknown task 'segmentatoin'"),
        (["finetune.task=nope"], "--set finetune.task=nope: unknown task 'nope'"),
        (["task=text-classification"], "r.toml:5: data.dataset: images: "),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named_by_its_place_in_the_recipe(refused, recipe, sets, says):
    flags = [part for text in sets for part in ("--set", text)]
    assert says in refused("recipes", "check", "r.toml", *flags)


def test_a_line_of_the_file_is_named_where_the_file_says_it(refused, recipe):
    recipe.write_text(RECIPE.replace('"images"', '"imagse"'))
    assert "r.toml:5: data.dataset: unknown dataset 'imagse'" in refused(
        "recipes", "check", "r.toml"
    )


def test_what_only_a_network_could_tell_is_noted(pela, recipe):
    """The tests are offline."""
    code, out, err = pela("recipes", "check", "r.toml", "--set", "model=owner/name")
    assert (code, out) == (0, "r.toml: ok\n")
    assert err.startswith("note: --set model=owner/name: not looked at, nor are the data: ")
    code, _, err = pela("recipes", "check", "r.toml", "--set", "data.dataset=torch/cifar10")
    assert code == 0
    assert "torch/cifar10: not looked at, as that would fetch it" in err
