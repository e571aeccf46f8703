"""Drawn shapes with words about them, a tokenizer of those words, and tiny models to learn them."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 230),
           "yellow": (235, 220, 40)}  # fmt: skip
SHAPES = ("square", "ring", "bar")
PLACES = {"left": (0.25, 0.5), "right": (0.75, 0.5), "top": (0.5, 0.25), "bottom": (0.5, 0.75)}
THINGS = list(product(COLOURS, SHAPES, PLACES))
SIZE = 32
WORDS = [
    *COLOURS, *SHAPES, *PLACES, "a", "at", "the", "what", "colour", "shape", "where", "is", "it",
    "yes", "no", "there", "of", "and", "thing",
]  # fmt: skip
PAD, UNKNOWN, BEGIN, END, DECODE = range(5)
VOCABULARY = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", *WORDS])}


def caption(thing: tuple[str, str, str]) -> str:
    colour, shape, place = thing
    return f"a {colour} {shape} at the {place}"


def draw(
    things: list[tuple[str, str, str]], seed: int, size: int = SIZE
) -> tuple[Image.Image, list[list[float]]]:
    """An image of things, each about at its place, and their boxes [x, y, width, height]."""
    chance = random.Random(seed)
    image = Image.new("RGB", (size, size), (chance.randrange(118, 138),) * 3)
    pen, boxes = ImageDraw.Draw(image), []
    for colour, shape, place in things:
        x, y = (size * (c + chance.uniform(-0.05, 0.05)) for c in PLACES[place])
        r = size * chance.uniform(0.15, 0.2)
        box = [x - r, y - r, x + r, y + r]
        if shape == "square":
            pen.rectangle(box, COLOURS[colour])
        elif shape == "ring":
            pen.ellipse(box, outline=COLOURS[colour], width=2)
        else:
            box = [x - 1.3 * r, y - r / 3, x + 1.3 * r, y + r / 3]
            pen.rectangle(box, COLOURS[colour])
        boxes.append([box[0], box[1], box[2] - box[0], box[3] - box[1]])
    return image, boxes


def captions(folder: Path, copies: int, seed: int = 0, name: str = "train") -> None:
    """ALBEF's JSON: each thing drawn so many times."""
    folder.mkdir(exist_ok=True)
    entries = []
    for number, (copy, thing) in enumerate(product(range(copies), THINGS)):
        file = f"{name}{number}.png"
        draw([thing], seed + 1000 * copy + number)[0].save(folder / file)
        said = caption(thing) if name == "train" else [caption(thing)]
        entries.append({"image": file, "caption": said, "image_id": number})
    (folder / f"{name}.json").write_text(json.dumps(entries))


def questions(folder: Path, copies: int, seed: int = 0, name: str = "train") -> None:
    """ALBEF's JSON of questions: of ten people some may be of another opinion."""
    folder.mkdir(exist_ok=True)
    chance, entries = random.Random(seed), []
    for number, (copy, thing) in enumerate(product(range(copies), THINGS)):
        file = f"{name}{number}.png"
        draw([thing], seed + 1000 * copy + number)[0].save(folder / file)
        colour, shape, place = thing
        other = chance.choice(list(COLOURS))
        asked = [
            (f"what colour is the {shape}", colour),
            (f"where is the {colour} {shape}", place),
            (f"is it {other}", "yes" if other == colour else "no"),
        ]
        for question, answer in asked:
            entries.append({
                "dataset": "vqa", "image": file, "question": question,
                "answer": [answer] * 8 + [chance.choice(["yes", "a thing"])] * 2,
                "question_id": 10 * number + len(entries) % 10,
            })  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(entries))


ANSWERS = [*COLOURS, *PLACES, "yes", "no"]


def claims(folder: Path, copies: int, seed: int = 0, name: str = "train") -> None:
    """SNLI-VE in ALBEF's JSON: a word about what is drawn is right, wrong or no word about it."""
    folder.mkdir(exist_ok=True)
    entries = []
    things = [thing for thing in THINGS if thing[0] in ("red", "blue")]
    for number, (copy, thing) in enumerate(product(range(copies), things)):
        file = f"{name}{number}"
        draw([thing], seed + 1000 * copy + number)[0].save(folder / f"{file}.jpg", quality=95)
        colour = thing[0]
        wrong = "blue" if colour == "red" else "red"
        entries += [
            {"image": file, "sentence": f"it is {colour}", "label": "entailment"},
            {"image": file, "sentence": f"it is {wrong}", "label": "contradiction"},
            {"image": file, "sentence": "there is a thing", "label": "neutral"},
        ]
    (folder / f"{name}.json").write_text(json.dumps(entries))


def referring(
    folder: Path, count: int, seed: int = 0, name: str = "train", apart: bool = False
) -> None:
    """RefCOCO+ in ALBEF's JSON: two things in an image, one of which is meant; dets.json has the
    boxes of both and of two places where nothing is. To train on, a text is about both things, or,
    where they are ``apart``, about one of them."""
    folder.mkdir(exist_ok=True)
    chance, entries, choices = random.Random(seed), [], {}
    for number in range(count):
        places = chance.sample(list(PLACES), 2)
        colours = chance.sample(list(COLOURS), 2)
        things = [(c, chance.choice(SHAPES), p) for c, p in zip(colours, places, strict=True)]
        image, boxes = draw(things, seed + number)
        file = f"{name}_{seed + number:012d}.png"
        image.save(folder / file)
        if name == "train":
            said = [caption(thing) for thing in things]
            texts = said if apart else [" and ".join(said)]
            entries += [{"image": file, "text": text} for text in texts]
            continue
        for thing, box in zip(things, boxes, strict=True):
            entries.append({
                "image": file, "text": f"the {thing[0]} {thing[1]}", "ref_id": len(entries),
                "bbox": box, "split": "val" if number % 2 else "testA",
            })  # fmt: skip
        empty = [[SIZE * x - 5, SIZE * y - 5, 10, 10] for p, (x, y) in PLACES.items()
                 if p not in places]  # fmt: skip
        choices[str(seed + number)] = boxes + empty
    (folder / f"{name}.json").write_text(json.dumps(entries))
    if choices:
        (folder / "dets.json").write_text(json.dumps(choices))


def swapped(folder: Path) -> str:
    """A split in which the other of the two things is right: what only finds things is as good."""
    entries = json.loads((folder / "val.json").read_text())
    for one, two in zip(entries[::2], entries[1::2], strict=True):
        one["bbox"], two["bbox"] = two["bbox"], one["bbox"]
    (folder / "other.json").write_text(json.dumps(entries))
    return "other.json"


def tokenizer(folder: Path) -> None:
    """A word-level tokenizer as transformers reads it, into a model's folder."""
    words = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", BEGIN), ("[SEP]", END)]
    )
    words.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]",
        "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]", "model_max_length": 16,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


WIDTH = 48
TOWER = {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "initializer_range": 0.1}  # fmt: skip
EYES = TOWER | {"image_size": SIZE, "patch_size": 8}
READS = TOWER | {
    "vocab_size": len(VOCABULARY), "max_position_embeddings": 16, "pad_token_id": PAD,
    "bos_token_id": BEGIN, "eos_token_id": END,
}  # fmt: skip
BLIP_READS = READS | {"bos_token_id": DECODE, "sep_token_id": END, "eos_token_id": END,
                      "encoder_hidden_size": WIDTH, "projection_dim": 32,
                      "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip


def model(kind: str, folder: Path, seed: int = 0, **settings: object) -> Path:
    """A tiny model of a class of transformers with fresh weights, saved with its tokenizer."""
    import transformers as hf

    torch.manual_seed(seed)
    if kind.startswith("Vilt"):
        config = hf.ViltConfig(**{**READS, **EYES, "type_vocab_size": 2, **settings})
    elif kind.startswith("Blip"):
        config = hf.BlipConfig(
            text_config=BLIP_READS, vision_config=EYES, projection_dim=32,
            image_text_hidden_size=32, **settings,
        )  # fmt: skip
    else:
        family = {"CLIPModel": hf.CLIPConfig, "SiglipModel": hf.SiglipConfig}[kind]
        config = family(text_config=READS, vision_config=EYES, projection_dim=32, **settings)
    made = getattr(hf, kind)(config)
    made.save_pretrained(folder)
    tokenizer(folder)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3,
                 "size": {"height": SIZE, "width": SIZE}}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def albef(
    folder: Path,
    variant: str,
    seed: int = 0,
    *,
    learns: bool = False,
    local: bool = False,
    **settings: object,
) -> Path:
    """A tiny ALBEF with fresh weights, saved with its tokenizer.

    Args:
        learns: it is to learn its task from nothing, see `albef_tiny.widen`.
        local: then its patches are to tell of themselves.
    """
    from albef_tiny import SIX, tiny, widen
    from safetensors.torch import save_file

    sizes = {"image_size": SIZE, "vocab_size": len(VOCABULARY), "max_positions": 16,
             "vision_width": WIDTH, "text_width": WIDTH, "text_hidden": 96,
             "dropout": 0.0}  # fmt: skip
    made = tiny(variant, seed, **{**sizes, **(SIX if learns else {}), **settings})
    if learns:
        widen(made, 4 if local else 12)
    else:
        for parameter in made.parameters():  # fresh ones are too even to tell things apart
            if parameter.ndim > 1:
                parameter.data.mul_(4)
    folder.mkdir(exist_ok=True)
    config = {**made.config.to_json(), "pela_model": "albef"}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: t.contiguous() for name, t in made.state_dict().items()}
    save_file(
        {n: t for n, t in tensors.items() if "predictions.decoder" not in n},
        folder / "model.safetensors",
    )
    tokenizer(folder)
    return folder
