"""Precisions go by several words, and epochs between evaluations may be a fraction."""

from __future__ import annotations

import json

import pytest
import torch
from recipe_text import DATA, read, refused

from pelacli.recipe import schema
from pelacli.recipe.fingerprint import fingerprint
from pelacli.recipe.step import step_of
from pelacli.report.latencies import TimingRequest
from pelacli.system import precisions

SPELLINGS = [
    ("fp32", "fp32"), ("float32", "fp32"), ("no", "fp32"), ("torch.float32", "fp32"),
    ("bf16", "bf16"), ("bfloat16", "bf16"), ("BF16", "bf16"), ("torch.bfloat16", "bf16"),
    ("fp16", "fp16"), ("float16", "fp16"), ("half", "fp16"), ("Float16", "fp16"),
]  # fmt: skip
TRAINED = DATA + "[pretrain]\n"


@pytest.mark.parametrize(("word", "name"), SPELLINGS)
def test_a_precision_is_understood_by_any_of_its_names(word, name):
    recipe = read(TRAINED + f'precision = "{word}"\n[decompose]\nlatency.precision = "{word}"\n')
    assert recipe.pretrain.precision == recipe.decompose.latency.precision == name
    ask = TimingRequest.parse(device=None, batch_sizes=None, precision=word, compile=False)
    assert ask.precision == name


@pytest.mark.parametrize("word", ['"bf8"', '"int8"', '"32"', "32", "true", '""'])
def test_another_word_is_refused_with_the_names(word):
    assert "is none of fp32, bf16, fp16" in refused(TRAINED + f"precision = {word}\n")


def test_a_step_in_float32_is_the_same_step_by_every_word():
    """Artefacts bear digests of the time when it was called "no"."""
    texts = ["", 'precision = "fp32"\n', 'precision = "no"\n']
    steps = [step_of(read(TRAINED + text), "pretrain") for text in texts]
    assert len({fingerprint(step, "") for step in steps}) == 1
    document = schema.resolved(read(TRAINED))
    document["pretrain"]["precision"] = "no"
    assert schema.Recipe.model_validate(document) == read(TRAINED)


@pytest.mark.parametrize(
    ("precision", "has", "obstacle"),
    [
        ("fp32", {}, None),
        ("bf16", {}, "this CPU has no bfloat16"),
        ("bf16", {"avx512_bf16": True}, None),
        ("bf16", {"amx_bf16": True}, None),
        ("bf16", {"bf16": True}, None),
        ("fp16", {}, "fp16 is for GPUs"),
        ("fp16", {"avx512_bf16": True}, "fp16 is for GPUs; this CPU has 'bf16'"),
    ],
)
def test_what_a_cpu_computes_in(monkeypatch, precision, has, obstacle):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert precisions.obstacle(precision, torch.device("cpu")) == obstacle


@pytest.mark.parametrize("text", ["0.25", "1", "1.0", "2.5", "3"])
def test_epochs_between_evaluations_may_be_a_fraction(text):
    recipe = read(TRAINED + f"eval_every = {text}\n")
    assert recipe.pretrain.eval_every == float(text)
    whole = float(text).is_integer()  # as it always was: what is recorded of it stays the same
    assert isinstance(schema.resolved(recipe)["pretrain"]["eval_every"], int) == whole
    stored = json.loads(json.dumps(schema.resolved(recipe)))
    assert schema.Recipe.model_validate(stored) == recipe


@pytest.mark.parametrize(
    ("text", "says"),
    [("0", "0 is out of range; above 0"), ("-1", "-1 is out of range; above 0"),
     ('"1"', "expected a number, not the text '1'; write it without quotes"),
     ("nan", "expected a finite number"), ("true", "expected a number, not true")],
)  # fmt: skip
def test_other_epochs_between_evaluations_are_refused(text, says):
    assert says in refused(TRAINED + f"eval_every = {text}\n")
