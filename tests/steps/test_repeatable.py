"""The same recipe, seed, versions and threads give the same artefact, wherever it is made."""

from __future__ import annotations

import json
import shutil

import torch
import transformers
from older_artefacts import forget_digests
from tiny_healing import decomposed, plain_images

import pelacli
from pelacli.manifest import document
from pelacli.recipe.step import step_of
from pelacli.steps import pretrain


def test_a_recipe_gives_one_digest_in_any_directory(tmp_path):
    made, images = [], plain_images(tmp_path / "images", 64)
    for folder in (tmp_path / "a", tmp_path / "b" / "below"):
        recipe = decomposed(folder, images, steps=2, lr=1e-4, result="last")
        pretrain.run(step_of(recipe, "pretrain"))
        made.append([pelacli.verify(folder / "run" / step) for step in ("decompose", "pretrain")])
    assert [v.digest for v in made[0]] == [v.digest for v in made[1]]
    assert len({v.digest for v in made[0]}) == 2
    last = document.read(tmp_path / "a" / "run" / "pretrain").history[-1]
    assert last.machine["threads"] == torch.get_num_threads()
    assert last.machine["processes"] == 1
    assert set(last.machine) == {"device", "instructions", "threads", "processes"}


def test_paths_are_no_part_of_the_digest_and_layers_and_weights_are(tmp_path, pela):
    config = transformers.BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=50, max_position_embeddings=16,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "moved" / "elsewhere")
    digests = []
    for model, ratio in (("model", "0.7"), ("moved/elsewhere", "0.7"), ("model", "0.8")):
        output = tmp_path / f"{model}-{ratio}"
        code, _, err = pela("decompose", tmp_path / model, "--ratio", ratio, "-o", output)
        assert code == 0, err
        [result] = json.loads(pela("verify", output, "--json")[1])
        digests.append(result["digest"])
    assert digests[0] == digests[1] != digests[2]


def test_what_is_damaged_or_older_has_no_digest(artefact):
    whole = (artefact / "config.json").read_bytes()
    (artefact / "config.json").write_bytes(whole + b"\n")
    assert pelacli.verify(artefact).digest is None
    (artefact / "config.json").write_bytes(whole)
    assert pelacli.verify(artefact).digest is not None
    forget_digests(artefact)
    assert pelacli.verify(artefact).digest is None
