"""Tiny stand-ins for the models and data of the recipes that come with pela, by the names that the
recipes give theirs."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import albef_world
import drawn_boxes
import drawn_masks
import generated_text
import numpy as np
import pair_world
from PIL import Image

from pelacli.cli import requests
from pelacli.recipe import gallery
from pelacli.steps import decompose

VIT = (
    "weights=random",
    "num_classes=2",
    "model_args={ img_size = 32, patch_size = 8, embed_dim = 32, depth = 2, num_heads = 2 }",
)
SWIN = (
    "weights=random",
    "num_classes=2",
    "model_args={ img_size = 64, patch_size = 4, window_size = 4, embed_dim = 16, "
    "depths = [2, 2], num_heads = [2, 2] }",
)
PLACEHOLDER = re.compile(r"PATH/TO/([A-Za-z0-9]+)")
QUICK = ("data.workers=0", "data.batch_size=4")


@dataclass(frozen=True)
class StandIn:
    """What a recipe is tried on.

    Attributes:
        make: writes the data and the models into the working directory.
        data: placeholder of the header's commands, PATH/TO/NAME → what it stands for.
        sets: what makes the model and the run small, "a.b=value" each.
        steps: sections whose training is cut short.
        first: as ``sets``, of the recipe of a backbone that is run first.
    """

    make: Callable[[], object]
    data: dict[str, str] = field(default_factory=dict)
    sets: tuple[str, ...] = ()
    steps: tuple[str, ...] = ("pretrain",)
    first: tuple[str, ...] = ()


def images() -> None:
    """Folders of two classes."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("validation", 3)):
        for shade, name in enumerate(("dark", "light")):
            folder = Path("images", split, name)
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 128, (40, 40, 3), dtype=np.uint8) + 127 * shade
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")


def texts() -> None:
    for split, count in (("train", 12), ("validation", 6)):
        generated_text.write(Path("texts", f"{split}.jsonl"), generated_text.labelled(count, 1))
    generated_text.save_model("bert", "MaskedLM", Path("google-bert/bert-base-uncased"))


def sentences() -> None:
    rows = generated_text.counted(12, 0)
    Path("sentences").mkdir()
    Path("sentences/train.txt").write_text("".join(f"{text}\n" for text, _ in rows))
    scored = [
        {"sentence1": a, "sentence2": b, "score": float(n)}
        for (a, n), (b, _) in itertools.pairwise(rows)
    ]
    generated_text.write(Path("sentences/validation.jsonl"), scored)
    generated_text.save_model("bert", "", Path("sentence-transformers/all-MiniLM-L6-v2"))


def plain_text() -> None:
    Path("text").mkdir()
    for split, seed in (("train", 0), ("validation", 1)):
        lines = [text for text, _ in generated_text.counted(40, seed)]
        Path("text", f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    generated_text.save_model("gpt2", "CausalLM", Path("openai-community/gpt2"))


def boxes() -> None:
    drawn_boxes.write(Path("coco"), {"train2017": 6, "val2017": 4})


def yolos() -> None:
    import transformers
    from tiny_detectors import YOLOS

    boxes()
    config = transformers.YolosConfig(**YOLOS, num_labels=2)
    transformers.YolosForObjectDetection(config).save_pretrained("hustvl/yolos-base")


def masks() -> None:
    folder = drawn_masks.write(Path("ADEChallengeData2016"), {"training": 6, "validation": 4})
    (folder / "classes.txt").unlink()  # ADE20K's archive has none


def pairs() -> None:
    albef_world.model(Path("albef"))
    for seed, name in enumerate(("train_coco", "val")):
        albef_world.draw(Path("pairs"), name, 6, seed)


def downstream(write: Callable[..., None], files: dict[str, str], **how: int) -> Callable[[], None]:
    """The low-rank ALBEF that its recipe would make, and data of a downstream task.

    Args:
        files: the recipe's name of a file → the split that ``write`` is to draw for it.
    """

    def make() -> None:
        pair_world.albef(Path("albef"), "pretrain")
        decompose.run(requests.decompose("albef", {}, {"ratio": "0.6"}, [], Path("runs/albef")))
        boxes: dict[str, object] = {}
        refs: list[object] = []
        for number, (name, split) in enumerate(files.items()):
            write(Path("data"), name=split, seed=1000 * number, **how)
            entries = json.loads(Path(f"data/{split}.json").read_text())
            for entry in entries:  # ids are a file's own there, and the dataset's here
                for key in entry.keys() & {"question_id", "ref_id"}:
                    entry[key] += 1000 * number
            Path(f"data/{split}.json").unlink()
            Path(f"data/{name}.json").write_text(json.dumps(entries))
            if Path("data/dets.json").is_file():
                boxes |= json.loads(Path("data/dets.json").read_text())
            refs += [entry | {"image_id": number} for entry in entries if "ref_id" in entry]
        Path("data/answer_list.json").write_text(json.dumps(pair_world.ANSWERS))
        Path("data/dets.json").write_text(json.dumps(boxes))
        Path("data/refs.json").write_text(json.dumps(refs))

    return make


SMALL_PICTURES = ("data.image_size=32", "task_args.max_words=8")
ON_PAIRS = (*SMALL_PICTURES, "task_args.queue=16")
TRAINED = ("finetune",)
STAND_INS = {
    "quickstart": StandIn(lambda: None, steps=("teacher", "pretrain", "finetune")),
    "vit_base": StandIn(images, {"IMAGES": "images"}, VIT),
    "imagenet/deit_base": StandIn(images, {"IMAGENET": "images"}, VIT),
    "imagenet/deit3_large": StandIn(images, {"IMAGENET": "images"}, VIT),
    "imagenet/swin_base": StandIn(images, {"IMAGENET": "images"}, SWIN),
    "text_classification": StandIn(texts, {"TEXTS": "texts"}, steps=("pretrain", "finetune")),
    "sentence_encoder": StandIn(sentences, {"SENTENCES": "sentences"}),
    "gpt2": StandIn(plain_text, {"TEXT": "text"}, ("task_args.block=32",)),
    "detection": StandIn(
        yolos, {"COCO": "coco"}, ("data.image_size=48", "task_args.sizes=[48]"),
        ("pretrain", "finetune"),
    ),
    "detection_swin": StandIn(
        lambda: (images(), boxes()), {"IMAGENET": "images", "COCO": "coco"},
        ("data.image_size=64", "task_args.queries=5"), TRAINED, SWIN,
    ),
    "segmentation": StandIn(
        lambda: (images(), masks()),
        {"IMAGENET": "images", "ADEChallengeData2016": "ADEChallengeData2016"},
        ("data.image_size=64", "task_args.channels=8", "task_args.auxiliary_channels=8"),
        TRAINED, SWIN,
    ),
    "albef": StandIn(
        pairs, {"PAIRS": "pairs"},
        ("model=albef", "weights=pretrained", "task_args.queue=16", "task_args.max_tokens=8",
         r"pretrain.taps=['text_encoder\.bert\.encoder\.layer\.\d+']"),
    ),
    "albef_retrieval": StandIn(
        downstream(pair_world.captions, {"flickr30k_train": "train", "flickr30k_val": "val",
                                         "flickr30k_test": "test"}, copies=1),
        {"DATA": "data"}, (*ON_PAIRS, "task_args.k_test=4"), TRAINED,
    ),
    "albef_entailment": StandIn(
        downstream(pair_world.claims, {"ve_train": "train", "ve_dev": "val", "ve_test": "test"},
                   copies=1),
        {"DATA": "data"}, SMALL_PICTURES, TRAINED,
    ),
    "albef_vqa": StandIn(
        downstream(pair_world.questions, {"vqa_train": "train", "vqa_val": "val",
                                          "vg_qa": "other", "vqa_test": "test"}, copies=1),
        {"DATA": "data"}, ("data.image_size=32", "task_args.max_tokens=8", "task_args.k_test=4"),
        TRAINED,
    ),
    "albef_grounding": StandIn(
        downstream(pair_world.referring, {"refcoco+_train": "train", "refcoco+_val": "val",
                                          "refcoco+_test": "test"}, count=8),
        {"DATA": "data"}, (*ON_PAIRS, "task_args.layer=3"), TRAINED,
    ),
}  # fmt: skip
# More than two seconds each.
SLOW = {
    "quickstart", "detection", "detection_swin", "segmentation", "imagenet/swin_base",
    "imagenet/deit3_large", "albef", "albef_retrieval", "albef_entailment", "albef_vqa",
    "albef_grounding",
}  # fmt: skip


def commands(name: str) -> list[list[str]]:
    """The commands of a recipe's header that are run one after the other, as words after ``pela``,
    with placeholders as they stand."""
    lines = gallery.read(name).split("\n")
    header = [line for line in lines if re.match(r"#   pela (recipes copy|run) ", line)]
    whole = [part.strip() for line in header for part in line.removeprefix("#   ").split("&&")]
    return [shlex.split(command)[1:] for command in whole]


def made_small(words: list[str], stand_in: StandIn, *, is_last: bool = True) -> list[str]:
    """A command on the stand-ins.

    Args:
        is_last: whether it runs the recipe itself, and not that of its backbone.
    """
    filled = [PLACEHOLDER.sub(lambda match: stand_in.data[match[1]], word) for word in words]
    sets = stand_in.sets if is_last else stand_in.first
    steps = stand_in.steps if is_last else ("pretrain",)
    small = [*QUICK, *sets, *(f"{section}.steps=1" for section in steps)]
    return [*filled, *(part for text in small for part in ("--set", text))]
