"""Small models, artefacts and data, and commands that read them: what is to be damaged."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(28))]
_BERT = {
    "vocab_size": len(_WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 24,
}  # fmt: skip
_VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
_EVAL = ("--no-latency", "--json")
_FEW = ("--ratio", "0.9", "--dry-run", "--json")


@dataclass(frozen=True)
class Subject:
    """A file or directory, and a command that reads it.

    Attributes:
        command: arguments of pela, run where the subject lies.
        damaged: patterns of the files that are damaged.
        is_recorded: whether an artefact's manifest holds the digests of these files, so that the
            command may end well with the undamaged result alone.
        is_data: whether a user names the files, and may have links to them.
    """

    name: str
    command: Sequence[str]
    damaged: Sequence[str]
    is_recorded: bool = False
    is_data: bool = False


SUBJECTS = (
    Subject("weights", ("decompose", "bert", *_FEW), ("bert/*.safetensors",)),
    Subject("timm weights", ("decompose", "vit", *_FEW), ("vit/*.safetensors",)),
    Subject("shards", ("decompose", "sharded", *_FEW), ("sharded/*.safetensors",)),
    Subject("index", ("decompose", "sharded", *_FEW), ("sharded/*.index.json",)),
    Subject("config", ("decompose", "bert", *_FEW), ("bert/config.json",)),
    Subject("timm config", ("decompose", "vit", *_FEW), ("vit/config.json",)),
    Subject("tokenizer", ("decompose", "bert", *_FEW), ("bert/tokenizer*", "bert/special*")),
    Subject("processor", ("decompose", "seer", *_FEW), ("seer/preprocessor_config.json",)),
    Subject(
        "sentence modules",
        ("decompose", "sentences", *_FEW),
        ("sentences/modules.json", "sentences/sentence_*", "sentences/*_*/*"),
    ),
    Subject("artefact", ("eval", "art", "--json"), ("art/model.safetensors",), True),
    Subject("manifest", ("eval", "art", *_EVAL), ("art/pela.json",)),
    Subject("artefact config", ("eval", "art", *_EVAL), ("art/config.json",)),
    Subject("report", ("report", "art", "--json"), ("art/pela.json",)),
    Subject("spectra", ("report", "art", "--sweep", "0.9..0.8:2", "--json"), ("art/spectra*",)),
    Subject(
        "plan",
        ("decompose", "vit", "--plan", "plan.json", "--dry-run"),
        ("plan.json",),
        is_data=True,
    ),
    Subject(
        "recipe",
        ("decompose", "recipe.toml", "--dry-run", "--json"),
        ("recipe.toml",),
        is_data=True,
    ),
    Subject("checked recipe", ("recipes", "check", "recipe.toml"), ("recipe.toml",), is_data=True),
    Subject(
        "images",
        ("decompose", "vit", "--calibrate", "images", "--samples", "4", "--no-correct", *_FEW),
        ("images/*/*",),
        is_data=True,
    ),
    Subject(
        "labelled images",
        ("eval", "vit", "--data", "folders/images", *_EVAL),
        ("folders/images/*/*/*",),
        is_data=True,
    ),
    Subject(
        "annotations",
        ("eval", "detector", "--data", "coco", "--split", "val", *_EVAL),
        ("coco/annotations/*",),
        is_data=True,
    ),
    Subject("rows", ("eval", "bert", "--data", "rows.csv", *_EVAL), ("rows.csv",), is_data=True),
    Subject(
        "json rows",
        ("eval", "bert", "--data", "rows.jsonl", *_EVAL),
        ("rows.jsonl",),
        is_data=True,
    ),
    Subject(
        "texts",
        ("decompose", "bert", "--calibrate", "texts.txt", "--samples", "4", "--no-correct", *_FEW),
        ("texts.txt",),
        is_data=True,
    ),
)


def make(root: Path) -> None:
    """Write all that the subjects name below a directory."""
    torch.manual_seed(0)
    transformers.logging.disable_progress_bar()
    _bert(root / "bert")
    config = transformers.BertConfig(**_BERT)
    transformers.BertModel(config).save_pretrained(root / "sharded", max_shard_size="4KB")
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=2, **_VIT)
    timm.models.save_for_hf(vit, str(root / "vit"), model_args=_VIT, safe_serialization=True)
    _seer(root / "seer")
    _sentences(root / "sentences")
    _detector(root / "detector")
    _images(root)
    _coco(root / "coco")
    _texts(root)
    (root / "recipe.toml").write_text(
        'model = "bert"\noutput = "run"\nseed = 1\n\n[decompose]\nratio = 0.9\npolicy = "energy"\n'
        'exclude = ["pooler"]\n\n[data]\ndataset = "rows.csv"\nbatch_size = 2\n'
    )


def _bert(folder: Path) -> None:
    config = transformers.BertConfig(**_BERT, num_labels=2)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(_WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", model_max_length=16
    ).save_pretrained(folder)


def _seer(folder: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(**shape, intermediate_size=16, image_size=16, patch_size=8)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    processor: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16},
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def _sentences(folder: Path) -> None:
    from safetensors.torch import save_file

    _bert(folder)
    transformers.BertModel(transformers.BertConfig(**_BERT)).save_pretrained(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    for name in ("1_Pooling", "2_Dense"):
        (folder / name).mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    dense = {
        "in_features": 16, "out_features": 8, "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }  # fmt: skip
    (folder / "2_Dense/config.json").write_text(json.dumps(dense))
    linear = torch.nn.Linear(16, 8)
    tensors = {"linear.weight": linear.weight.detach(), "linear.bias": linear.bias.detach()}
    save_file(tensors, folder / "2_Dense/model.safetensors")


def _detector(folder: Path) -> None:
    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=[32, 32], patch_size=16, num_detection_tokens=3, num_labels=2,
    )  # fmt: skip
    transformers.YolosForObjectDetection(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    processor = {"image_processor_type": "YolosImageProcessor", "do_resize": True, "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def _images(root: Path) -> None:
    generator = np.random.default_rng(0)
    endings = ("png", "jpg", "bmp", "webp", "gif", "tiff")
    for number, ending in enumerate(endings):
        picture = Image.fromarray(generator.integers(0, 255, (20, 20, 3), dtype=np.uint8))
        for folder in (f"images/{number % 2}", f"folders/images/val/{number % 2}"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            picture.save(root / folder / f"{number}.{ending}")
    shutil.copytree(root / "folders/images/val", root / "folders/images/train")


def _coco(folder: Path) -> None:
    (folder / "annotations").mkdir(parents=True)
    (folder / "val").mkdir()
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 40} for i in range(2)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1 + i, "bbox": [2, 2, 10, 10], "area": 100,
             "iscrowd": 0}
            for i in range(2)
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }  # fmt: skip
    (folder / "annotations/instances_val.json").write_text(json.dumps(document))
    for i in range(2):
        Image.new("RGB", (40, 40), (90 * i, 9, 9)).save(folder / "val" / f"{i}.png")


def _texts(root: Path) -> None:
    rows = [{"text": f"w{i} w{i + 1}", "label": i % 2} for i in range(6)]
    with (root / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    (root / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (root / "texts.txt").write_text("".join(f"{row['text']}\n" for row in rows))
