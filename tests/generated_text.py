"""Tiny text models with a word-level tokenizer, and texts that they can learn."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

FILLERS = [f"w{i}" for i in range(24)]
KEYS = [f"k{i}" for i in range(24)]
WORDS = [*FILLERS, *KEYS, "not", "."]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
COLOURS = ("red", "yellow", "green", "blue")
VOCABULARY = len(SPECIAL) + len(WORDS)

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": VOCABULARY, "max_position_embeddings": 64, "initializer_range": 0.1,
}  # fmt: skip
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# DistilBERT and GPT-2 have words of their own for the same things.
SETTINGS = {
    "bert": SMALL | NO_DROPOUT,
    "roberta": SMALL | NO_DROPOUT | {"pad_token_id": 0},
    "mpnet": SMALL | NO_DROPOUT | {"pad_token_id": 0},
    "modernbert": SMALL | {"pad_token_id": 0, "global_attn_every_n_layers": 2,
                           "local_attention": 16, "cls_token_id": 2, "sep_token_id": 3,
                           "bos_token_id": 2, "eos_token_id": 3},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64,
                   "vocab_size": VOCABULARY, "max_position_embeddings": 64,
                   "dropout": 0.0, "attention_dropout": 0.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "resid_pdrop": 0.0,
             "embd_pdrop": 0.0, "attn_pdrop": 0.0, "vocab_size": VOCABULARY,
             "bos_token_id": 3, "eos_token_id": 3},
    "llama": SMALL | {"num_key_value_heads": 1, "bos_token_id": 2, "eos_token_id": 3},
}  # fmt: skip


def tokenizer(*, decoder: bool = False) -> transformers.PreTrainedTokenizerFast:
    """A word is a token. A decoder's has an end of text, and neither padding nor mask."""
    ids = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]"}
    if decoder:
        names |= {"eos_token": "[SEP]"}
    else:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        names |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                  "mask_token": "[MASK]"}  # fmt: skip
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **names,
    )


def save_model(family: str, kind: str, path: Path, **settings: object) -> Path:
    """A directory with a fresh model, kind as in "SequenceClassification", "" for the encoder."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **SETTINGS[family] | settings)
    auto = getattr(transformers, f"AutoModelFor{kind}" if kind else "AutoModel")
    auto.from_config(config).save_pretrained(path)
    tokenizer(decoder=family in ("gpt2", "llama")).save_pretrained(path)
    return path


def labelled(count: int, seed: int) -> list[dict[str, object]]:
    """Sentences of four classes: the key word's, or the next one where there is a "not" too."""
    dice = random.Random(seed)
    rows = []
    for _ in range(count):
        key, negated = dice.randrange(len(KEYS)), dice.random() < 0.5
        words = dice.choices(FILLERS, k=dice.randint(4, 9))
        words.insert(dice.randrange(len(words)), KEYS[key])
        if negated:
            words.insert(dice.randrange(len(words)), "not")
        rows.append({"text": " ".join(words), "label": COLOURS[(key // 6 + negated) % 4]})
    return rows


def counted(count: int, seed: int) -> list[tuple[str, int]]:
    """Sentences of eight words, and how many of them are key words."""
    dice = random.Random(seed)
    found = []
    for _ in range(count):
        keys = dice.randint(0, 8)
        words = dice.choices(KEYS, k=keys) + dice.choices(FILLERS, k=8 - keys)
        dice.shuffle(words)
        found.append((" ".join(words), keys))
    return found


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    """A .jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
