"""Batches of a language model come a few texts at a time, and every sample comes once."""

from __future__ import annotations

import torch
from generated_text import save_model
from torch import nn

from pelacli.data.token_parts import token_parts
from pelacli.models import opening


def batch(count=7, length=150):
    ids = torch.arange(count * length).view(count, length) % 50
    return {
        "inputs": {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        "labels": ids + 1,
        "names": [str(i) for i in range(count)],
        "temperature": torch.tensor(2.0),
    }


def test_a_language_models_texts_are_cut_with_all_that_belongs_to_them(tmp_path):
    model = opening.open(str(save_model("gpt2", "CausalLM", tmp_path / "lm"))).module
    whole = batch()
    parts = list(token_parts(model, [whole]))
    assert [len(part["labels"]) for part in parts] == [3, 3, 1]
    for name in ("input_ids", "attention_mask"):
        joined = torch.cat([part["inputs"][name] for part in parts])
        assert torch.equal(joined, whole["inputs"][name])
    assert torch.equal(torch.cat([part["labels"] for part in parts]), whole["labels"])
    assert [name for part in parts for name in part["names"]] == whole["names"]
    assert all(float(part["temperature"]) == 2 for part in parts)


def test_batches_of_other_models_stay_whole(tmp_path):
    encoder = opening.open(str(save_model("bert", "", tmp_path / "encoder"))).module
    language = opening.open(str(save_model("gpt2", "CausalLM", tmp_path / "lm"))).module
    texts = batch()
    pictures = {"inputs": {**texts["inputs"], "pixel_values": torch.zeros(7, 3, 4, 4)}}
    assert list(token_parts(encoder, [texts])) == [texts]
    assert list(token_parts(nn.Linear(2, 2), [texts])) == [texts]
    assert list(token_parts(language, [pictures])) == [pictures]
