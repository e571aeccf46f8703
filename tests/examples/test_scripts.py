"""The scripts of examples/ do what they say, with tiny models."""

from __future__ import annotations

import re

import example_scripts
import generated_text
import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

import pelacli
from pelacli.lowrank.find import low_rank_layers


def run(name, *arguments):
    """Call a script's main in this process."""
    example_scripts.load(f"{name}.py").main([str(argument) for argument in arguments])


def texts(folder, count):
    path = folder / "texts.txt"
    rows = generated_text.labelled(count, 0)
    path.write_text("".join(f"{row['text']}\n" for row in rows))
    return path


def test_the_image_classifier(here, capsys):
    dice = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (here / "images" / name).mkdir(parents=True)
        for number in range(4):
            pixels = dice.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(here / "images" / name / f"{number}.png")
    run("vit_on_a_folder", "images", "--model", "test_vit", "--random", "--ratio", "0.6")
    assert re.search(r"accuracy [\d.]+ % → [\d.]+ %", capsys.readouterr().out)
    assert low_rank_layers(pelacli.load("smaller"))


def test_the_sentence_encoder(here, capsys):
    generated_text.save_model("bert", "", here / "bert")
    SentenceTransformer(modules=[Transformer("bert"), Pooling(32)], device="cpu").save("model")
    sentences = texts(here, 40)
    run("sentence_encoder", sentences, "--model", "model", "--ratio", "0.9", "--samples", "16")
    cosine = re.search(r"mean cosine to the dense embeddings: ([\d.]+)", capsys.readouterr().out)
    assert float(cosine[1]) > 0.9
    assert low_rank_layers(SentenceTransformer("smaller-encoder")[0].auto_model)


def test_the_language_model(here, capsys):
    generated_text.save_model("llama", "CausalLM", here / "lm")
    block = ["--block", "16", "--samples", "8"]
    run("language_model", texts(here, 40), "--model", "lm", *block)
    shown = re.findall(r"perplexity ([\d.]+)", capsys.readouterr().out)
    assert len(shown) == 2
    assert low_rank_layers(pelacli.load("smaller-lm"))
