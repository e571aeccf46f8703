"""Padding, cut texts and unknown tokens: no figure may depend on what else is in the batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from generated_text import SETTINGS, labelled, save_model, tokenizer, write

from pelacli.data.tokens import Tokens
from pelacli.errors import RequestError
from pelacli.models import opening
from pelacli.models.prediction import predict

TEXTS = ["w1 w2 k3 k4 w5 w6", "k7", "w1 k2 w3"]


def saved(family, kind, path, tokens=None, **settings):
    """A model whose weights are large enough that a wrong position or token shows."""
    save_model(family, kind, path, initializer_range=1.0, **settings)
    if tokens:
        file = path / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | tokens))
    return opening.open(str(path))


LEFT = {"padding_side": "left"}
PADDED = {
    "gpt2, left": ("gpt2", "SequenceClassification", LEFT | {"pad_token": "[PAD]"}, {}),
    "gpt2, nothing set": ("gpt2", "SequenceClassification", {}, {}),
    "llama, nothing set": ("llama", "SequenceClassification", LEFT, {}),
    "llama, another token": (
        "llama", "SequenceClassification", {"pad_token": "[PAD]"}, {"pad_token_id": 4}),
    "llama, -1": ("llama", "SequenceClassification", {}, {"pad_token_id": -1}),
    "gpt2, embeddings": ("gpt2", "", LEFT, {}),
    "bert, left": ("bert", "SequenceClassification", LEFT, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", PADDED)
def test_the_output_for_a_text_is_the_same_in_any_batch(here, case):
    family, kind, tokens, settings = PADDED[case]
    opened = saved(family, kind, here / "model", tokens, **settings)
    read = Tokens.of(opened.inputs, "x")
    with torch.no_grad():
        together = predict(opened.module, read(TEXTS))
        alone = torch.cat([predict(opened.module, read([text])) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_xlnet_reads_its_last_position(here):
    config = transformers.XLNetConfig(vocab_size=60, d_model=32, n_layer=1, n_head=2, d_inner=64)
    torch.manual_seed(0)
    transformers.XLNetForSequenceClassification(config).save_pretrained(here / "model")
    tokenizer().save_pretrained(here / "model")
    opened = opening.open("./model")
    read = Tokens.of(opened.inputs, "x")
    with torch.no_grad():
        together = predict(opened.module, read(TEXTS))
        alone = torch.cat([predict(opened.module, read([text])) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("task", ["text-classification", "language-modelling"])
def test_eval_gives_the_same_figures_at_batch_size_1_and_32(pela, here, task):
    kind = "SequenceClassification" if task == "text-classification" else "CausalLM"
    saved("gpt2", kind, here / "model", LEFT)
    rows = [{**row, "label": i % 2} for i, row in enumerate(labelled(20, 0))]
    write(here / "a.jsonl", rows)
    figures = []
    for size in (1, 32):
        code, out, err = pela("eval", "./model", "--data", "a.jsonl", "--task", task, "--json",
                              "--no-latency", "--batch-size", size)  # fmt: skip
        assert code == 0, err
        figures.append(json.loads(out)[0]["metrics"])
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)


# Encoder-decoders --------------------------------------------------------------------------------


def t5(path: Path) -> str:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=SETTINGS["bert"]["vocab_size"], d_model=32, d_kv=16, d_ff=64, num_layers=2,
        num_heads=2, pad_token_id=0, eos_token_id=3, decoder_start_token_id=0,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return f"./{path.name}"


def test_an_encoder_decoder_is_calibrated_and_compared_on_texts(pela, here):
    model = t5(here / "t5")
    (here / "a.txt").write_text("\n".join(TEXTS * 8))
    code, out, err = pela("decompose", model, "--calibrate", "a.txt", "--ratio", "0.6", "--json",
                          "-o", "small")  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["calibrated"]
    code, out, err = pela("eval", "small", "--data", "a.txt", "--against", model, "--json",
                          "--no-latency")  # fmt: skip
    assert code == 0, err
    assert 0.5 < json.loads(out)[0]["agreement"]["cosine"] < 1
    code, _, err = pela("eval", model, "--data", "a.txt", "--task", "language-modelling")
    assert code == 2
    assert "writes a text in answer to another" in err


def test_an_encoder_decoder_reads_the_text_that_it_is_to_write(here):
    opened = opening.open(t5(here / "t5"))
    batch = Tokens.of(opened.inputs, "x")(TEXTS[:1])
    with torch.no_grad():
        ours = predict(opened.module, batch)
        theirs = opened.module(**batch, labels=batch["input_ids"]).logits
    assert torch.equal(ours, theirs)


# Lengths and vocabularies ------------------------------------------------------------------------


def test_cut_texts_are_counted(pela, here):
    saved("bert", "SequenceClassification", here / "model", num_labels=2)
    rows = [{"text": "w1 " * n, "label": n % 2} for n in (100, 3, 62, 63)]
    write(here / "a.jsonl", rows)
    _, _, err = pela("eval", "./model", "--data", "a.jsonl", "--no-latency")
    assert "longer than the 64 tokens that the model reads, and were cut there: 2" in err


def test_tokens_that_the_model_does_not_know_are_named(here):
    opened = saved("gpt2", "SequenceClassification", here / "model")
    opened.inputs.tokenizer.add_tokens(["zzz"])
    read = Tokens.of(opened.inputs, "a.csv")
    assert read(TEXTS)["input_ids"].shape == (3, 6)
    with pytest.raises(RequestError, match=r"a.csv: the tokenizer gives 'zzz' the number 55"):
        read(["w1", "zzz"])
    with pytest.raises(RequestError, match=r"a.csv: the text '' has no tokens"):
        read(["w1", ""])


@pytest.mark.parametrize(("limit", "longest"), [(int(1e30), 64), (16, 16)])
def test_the_shortest_limit_counts(here, limit, longest):
    opened = saved("bert", "", here / "model", {"model_max_length": limit})
    assert opened.inputs.max_length == longest
    assert Tokens.of(opened.inputs, "x")(["w1 " * 100])["input_ids"].shape == (1, longest)


def test_a_tokenizer_without_padding_and_end_is_refused(here):
    opened = saved("gpt2", "SequenceClassification", here / "model", {"eos_token": None})
    with pytest.raises(RequestError, match="neither a padding nor an end-of-text token"):
        Tokens.of(opened.inputs, "x")(TEXTS)


# Calibration -------------------------------------------------------------------------------------


def test_the_tokens_that_were_calibrated_on_are_in_the_manifest(pela, here):
    saved("gpt2", "CausalLM", here / "model", LEFT)
    (here / "a.txt").write_text("\n".join(TEXTS))
    code, out, err = pela("decompose", "./model", "--calibrate", "a.txt", "--ratio", "0.8",
                          "--json", "--verbose", "-o", "small")  # fmt: skip
    assert code == 0, err
    assert "calibrated on 3 samples, 10 tokens" in err
    assert {key: json.loads(out)[key] for key in ("samples", "tokens")} == {
        "samples": 3, "tokens": 10}  # fmt: skip
    metrics = json.loads(Path("small/pela.json").read_text())["history"][-1]["metrics"]
    assert (metrics["samples"], metrics["tokens"]) == (3, 10)
