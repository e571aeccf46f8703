"""Heal a tiny model for a long time, and watch that the process grows in nothing.

    python benchmarks/soak.py --minutes 60
    python benchmarks/soak.py --minutes 60 --kind images

It heals a tiny BERT with a pooler on sentences of changing length, or a tiny ViT on digits, through
`pelacli.steps.pretrain`, with evaluations and checkpoints as in a real run. Memory, open files and
threads are read all the while; after a tenth of the time, in which caches fill, none may grow. The
most of each in the first half of the rest is compared with the most in the second: the exit code is
1 if memory is more than 5 % above, or files or threads are more.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from _common import machine
from transformers import BertConfig, BertModel, BertTokenizerFast

from pelacli.errors import StoppedError
from pelacli.recipe.schema import Recipe
from pelacli.steps import pipeline

SETTLING = 0.1  # share of the time in which growth is no sign of anything
ALLOWED = 1.05  # memory at the end, of that after settling
WORDS = [f"w{number}" for number in range(200)]
TINY_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4}


@dataclass(frozen=True)
class Reading:
    """What the process had at a time.

    Attributes:
        memory: resident, MiB.
    """

    seconds: float
    memory: float
    files: int
    threads: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--kind", choices=("text", "images"), default="text")
    parser.add_argument("--out", type=Path, help="all readings, as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        readings = soaked(recipe(args.kind, Path(folder)), args.minutes * 60)
    if args.out is not None:
        record = {"machine": machine(), "readings": [asdict(reading) for reading in readings]}
        args.out.write_text(json.dumps(record), encoding="utf-8")
    settled, last = compared(readings)
    print(f"{args.kind}, {last.seconds / 60:.0f} minutes: after settling, and at the end")
    for name in ("memory", "files", "threads"):
        print(f"{name:8} {getattr(settled, name):10.0f} {getattr(last, name):10.0f}")
    sys.exit(int(grows(settled, last)))


def recipe(kind: str, folder: Path) -> Recipe:
    """A recipe that would train for ever."""
    data: dict[str, Any] = {"batch_size": 16}
    top: dict[str, Any] = {"output": str(folder / "run"), "device": "cpu"}
    if kind == "text":
        top |= {"model": str(encoder(folder / "encoder")), "task": "sentence-embedding"}
        data["dataset"] = str(sentences(folder / "sentences.txt"))
    else:
        top |= {"model": "vit_tiny_patch16_224", "weights": "random", "model_args": TINY_VIT}
        top["num_classes"] = 10
        data |= {"dataset": "digits", "augment": {"none": True}}
    healing = {"epochs": 1_000_000, "lr": 1e-5, "eval_every": 5, "save_every": 100, "labels": False}
    decompose = {"ratio": "0.6", "scope": "layers", "calibrate": "train", "samples": 64}
    return Recipe.model_validate(top | {"data": data, "decompose": decompose, "pretrain": healing})


def encoder(folder: Path) -> Path:
    """A tiny BERT, whose pooler no healing loss uses."""
    vocabulary = folder.with_suffix(".txt")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary.write_text("\n".join([*special, *WORDS]), encoding="utf-8")
    config = BertConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        vocab_size=len(special) + len(WORDS),
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab_file=str(vocabulary)).save_pretrained(folder)
    return folder


def sentences(file: Path) -> Path:
    """Sentences of one to forty words."""
    lines = [
        " ".join(WORDS[(7 * i + j) % len(WORDS)] for j in range(1 + i % 40)) for i in range(800)
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def soaked(spec: Recipe, seconds: float) -> list[Reading]:
    """Run the recipe until the time is over; what the process had, once a second."""
    readings: list[Reading] = []
    over = threading.Event()

    def read() -> None:
        process, began = psutil.Process(), time.monotonic()
        while not over.wait(1.0):
            passed = time.monotonic() - began
            memory = process.memory_info().rss / 2**20
            readings.append(Reading(passed, memory, process.num_fds(), process.num_threads()))
            if passed > seconds:
                process.terminate()  # as Ctrl-C: the run ends its step and saves
                return

    watcher = threading.Thread(target=read, daemon=True)
    watcher.start()
    try:
        pipeline.run(spec)
    except StoppedError:
        pass
    finally:
        over.set()
    return readings


def compared(readings: list[Reading]) -> tuple[Reading, Reading]:
    """(the most of each after settling, in the first half of the rest; the most in the second)."""
    first = int(len(readings) * SETTLING)
    middle = (first + len(readings)) // 2
    return _most(readings[first:middle]), _most(readings[middle:])


def _most(readings: list[Reading]) -> Reading:
    return Reading(
        readings[-1].seconds,
        max(reading.memory for reading in readings),
        max(reading.files for reading in readings),
        max(reading.threads for reading in readings),
    )


def grows(settled: Reading, last: Reading) -> bool:
    """Whether the process has grown in anything."""
    return (
        last.memory > settled.memory * ALLOWED
        or last.files > settled.files
        or last.threads > settled.threads
    )


if __name__ == "__main__":
    main()
