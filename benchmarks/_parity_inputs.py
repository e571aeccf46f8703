"""Tiny random models and generated data for `parity.py`, the same bytes at every call.

Each function puts what one group of cases reads into a directory. Vision models need none: pela
draws their weights from the recipe's seed.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

transformers.utils.logging.disable_progress_bar()
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(f"w{number}" for number in range(40))
VOCABULARY = SPECIAL + WORDS
BERT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 32, "vocab_size": len(VOCABULARY), "num_labels": 3,
    "initializer_range": 0.1,
}  # fmt: skip
GPT2 = {
    "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": len(VOCABULARY),
    "initializer_range": 0.1, "bos_token_id": 3, "eos_token_id": 3,
}  # fmt: skip
ALBEF = {
    "pela_model": "albef", "image_size": 32, "patch_size": 8, "vision_width": 32, "vision_depth": 2,
    "vision_heads": 2, "vocab_size": len(VOCABULARY), "text_width": 32, "text_depth": 4,
    "text_heads": 2, "text_hidden": 64, "max_positions": 16, "fusion_layer": 2, "embed_dim": 16,
}  # fmt: skip


def photos(folder: Path) -> None:
    """Images of two classes: ``photos/train/a/0.png`` and so on."""
    for seed, name in enumerate(("train/a", "train/b", "validation/a", "validation/b")):
        _images(folder / "photos" / name, 12, seed)


def bert(folder: Path) -> None:
    """A classifier ``tiny-bert``, ``texts`` of three classes, and ``texts.txt`` without labels."""
    (folder / "texts").mkdir()
    for seed, (split, count) in enumerate({"train": 48, "validation": 24}.items()):
        texts = _sentences(count, seed)
        rows = [{"text": text, "label": "abc"[len(text) % 3]} for text in texts]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"texts/{split}.jsonl").write_text(lines)
    (folder / "texts.txt").write_text("\n".join(_sentences(48, seed=2)))
    torch.manual_seed(0)
    config = transformers.BertConfig(**BERT)
    transformers.BertForSequenceClassification(config).save_pretrained(folder / "tiny-bert")
    _save_tokenizer(folder / "tiny-bert")


def gpt2(folder: Path) -> None:
    """A language model ``tiny-gpt2``, and ``prose`` with a sentence a line."""
    (folder / "prose").mkdir()
    for seed, (split, count) in enumerate({"train": 90, "validation": 30}.items()):
        (folder / f"prose/{split}.txt").write_text("\n".join(_sentences(count, seed)))
    torch.manual_seed(0)
    config = transformers.GPT2Config(**GPT2)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "tiny-gpt2")
    _save_tokenizer(folder / "tiny-gpt2", decoder=True)


def albef(folder: Path) -> None:
    """A ``tiny-albef`` whose weights pela draws itself, and ``pairs`` of images and captions."""
    for seed, (split, count) in enumerate({"train": 24, "val": 12}.items()):
        names = _images(folder / "pairs" / split, count, seed)
        pairs = zip(names, _sentences(count, seed), strict=True)
        rows = [{"image": f"{split}/{name}", "caption": text} for name, text in pairs]
        (folder / f"pairs/{split}.json").write_text(json.dumps(rows))
    (folder / "tiny-albef").mkdir()
    (folder / "tiny-albef/config.json").write_text(json.dumps(ALBEF))
    (folder / "tiny-albef/vocab.txt").write_text("\n".join(VOCABULARY) + "\n")


def _images(folder: Path, count: int, seed: int) -> list[str]:
    """PNG files of 32 × 32 random pixels; their names."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    names = [f"{number}.png" for number in range(count)]
    for name, array in zip(names, pixels, strict=True):
        Image.fromarray(array).save(folder / name)
    return names


def _sentences(count: int, seed: int) -> list[str]:
    """Sentences of four to twelve random words."""
    choose = random.Random(seed)
    return [" ".join(choose.choices(WORDS, k=choose.randint(4, 12))) for _ in range(count)]


def _save_tokenizer(folder: Path, *, decoder: bool = False) -> None:
    """A word is a token. A decoder's tokenizer has neither padding nor mask."""
    ids = {word: number for number, word in enumerate(VOCABULARY)}
    words = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    if not decoder:
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        tokens = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]",
                  "sep_token": "[SEP]", "mask_token": "[MASK]"}  # fmt: skip
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=32, **tokens
    ).save_pretrained(folder)
