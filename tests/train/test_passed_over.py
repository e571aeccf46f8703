"""A key that the model or the data of a training step have no use for is said, not passed over in
silence."""

from __future__ import annotations

import dataclasses

import pytest
from generated_text import save_model

from pelacli import console
from pelacli.models import opening
from pelacli.recipe import flags
from pelacli.recipe.step import step_of
from pelacli.train import passed_over


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "model"
    save_model("bert", "", folder)
    return opening.open(str(folder))


@pytest.mark.parametrize(
    ("top", "section", "labelled", "says"),
    [
        ({"data": {"dataset": "d", "image_size": 64}}, {}, True, "data.image_size: the model"),
        ({"data": {"dataset": "d", "augment": {"hflip": 0.1}}}, {}, True, "data.augment.hflip: "),
        ({"data": {"dataset": "d", "augment": {"smoothing": 0.1}}}, {}, False, "no labels are"),
        ({}, {"channels_last": True}, True, "finetune.channels_last: the model reads texts"),
        ({"num_classes": 5}, {}, True, "num_classes: the model has no output for each class"),
        ({"data": {"dataset": "d", "augment": {"smoothing": 0.1}}}, {}, True, ""),
        ({}, {}, True, ""),
    ],
)  # fmt: skip
def test_a_key_that_means_nothing_to_the_model_is_said(
    encoder, capsys, monkeypatch, top, section, labelled, says
):
    monkeypatch.setattr(console, "verbosity", console.Verbosity())
    recipe = flags.from_flags(
        {"model": "m", "output": "o", "data": {"dataset": "d"}, **top}, {"finetune": section}
    )
    passed_over.say(step_of(recipe, "finetune"), dataclasses.replace(encoder), labelled)
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == bool(says)
