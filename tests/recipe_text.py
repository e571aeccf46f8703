"""Recipes as text, and what reading one from a file gives: the recipe, or the refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from pelacli.errors import RequestError
from pelacli.recipe.reading import load
from pelacli.recipe.schema import Recipe

TOP = 'model = "vit_base"\noutput = "runs/x"\n'  # lines 1 and 2
DATA = TOP + '[data]\ndataset = "digits"\n'  # lines 3 and 4

FULL = """
model = "vit_base"
weights = "w.safetensors"
arch = "vit_base_patch16_224"
model_args = { img_size = 32, drop = 0.5, flag = true, name = "a", sizes = [1, 2] }
num_classes = 10
output = "runs/x"
seed = 3
task = "image-classification"
device = "cpu"
[data]
dataset = "digits"
train = "a"
val = "b"
image_size = 32
batch_size = 16
workers = 2
[data.augment]
scale = [0.5, 1.0]
ratio = [0.9, 1.1]
mixup = 0.8
[teacher]
epochs = 0.5
betas = [0.9, 0.99]
[decompose]
ratio = "2/3"
scope = "layers"
policy = "threshold"
threshold = 0.9
calibrate = "train"
include = ["blocks"]
exclude = ["head$"]
plan = "plans/a.json"
[decompose.pin]
'blocks[.]0' = 8
'qkv' = "dense"
[pretrain]
taps = ["blocks[.][0-9]+"]
labels = false
precision = "bf16"
trackers = ["tensorboard"]
[pretrain.loss]
feature = 0.5
perturbation_form = "hinge"
[finetune]
steps = 5
[finetune.data]
dataset = "hfds/cifar10"
[eval]
max_drop = 0.6
"""


def read(text: str, *overrides: str) -> Recipe:
    Path("x.toml").write_text(text, encoding="utf-8")
    return load("x.toml", overrides)


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(RequestError) as caught:
        read(text, *overrides)
    return str(caught.value)
