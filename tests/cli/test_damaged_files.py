"""Whatever a file holds, reading it ends well or in one clear line: some damage that is common, and
some by seeded chance, to every kind of file that pela reads."""

from __future__ import annotations

import copy
import json
import random
import shutil
import struct
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from refusals import refused as refused

from pelacli.artefact import loading
from pelacli.cli import failures
from pelacli.data import in_memory
from pelacli.manifest import document
from pelacli.planning import stored
from pelacli.ranks import plan_file
from pelacli.recipe import reading

# Bytes in the place of a text.
TEXTS = {
    "empty": b"",
    "blank": b" \n\n",
    "UTF-16": '{"format": 1}'.encode("utf-16"),
    "Latin": b'{"format": "\xe9"}',
    "binary": bytes(range(256)),
    "zeros": bytes(100),
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "long number": b'{"format": ' + b"9" * 6000 + b"}",
    "half a surrogate pair": b'{"format": "\\ud800"}',
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "an empty object": b"{}",
    "NaN": b"NaN",
    "a web page": b"<!doctype html><html></html>",
    "a pointer to Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
}
# What a value may have become.
VALUES = [
    None, True, -1, 0, 10**30, "x", "", [], {}, [1], [None], {"a": None}, 1.5, float("nan"),
    float("inf"), "\0", "../../x", "y" * 5000, "\ud800", [[1, 2], [3]], 10**9, "1e999",
]  # fmt: skip


def check(read):
    """Read, and check that an error is one line of the right kind. Gives the line, if any."""
    try:
        read()
    except Exception as error:
        failure = failures.describe(error)
        assert failure.exit_code == 2, failure.message
        assert "(unexpected" not in failure.message
        assert "\n" not in failure.message
        assert len(failure.message) < 620
        return failure.message
    return None


def places(value, depth=3):
    """The keys of all parts of a JSON value."""
    pairs = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        pairs = enumerate(value[:2])
    for key, part in pairs:
        yield (key,)
        if depth > 1:
            yield from ((key, *below) for below in places(part, depth - 1))


def changed(value, place, new, drop):
    value = copy.deepcopy(value)
    part = value
    for key in place[:-1]:
        part = part[key]
    if drop:
        del part[place[-1]]
    else:
        part[place[-1]] = new
    return value


def by_chance(value, count):
    """Copies of a JSON value in which a part is missing or something else."""
    chance = random.Random(0)
    all_places = list(places(value))
    for _ in range(count):
        place = chance.choice(all_places)
        yield changed(value, place, chance.choice(VALUES), chance.random() < 0.25)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A sentence encoder with all the files that such a directory has."""
    from tokenizers import Tokenizer, models

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    config = transformers.BertConfig(**shape, intermediate_size=16, max_position_embeddings=16)
    transformers.BertModel(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2}, unk_token="[UNK]"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", model_max_length=16
    ).save_pretrained(folder)
    kind = "sentence_transformers.models."
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": f"{kind}Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}Pooling"},
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> Path:
    """A classifier of images with its processor."""
    folder = tmp_path_factory.mktemp("vit")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(**shape, intermediate_size=16, image_size=16, patch_size=8)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    processor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture
def copy_of(request, here):
    """A copy of a model's directory, to be damaged."""

    def make(name):
        return Path(shutil.copytree(request.getfixturevalue(name), here / "m"))

    return make


JSON_FILES = [
    ("decomposed", "config.json", 25),
    ("bert", "config.json", 15),
    ("bert", "tokenizer_config.json", 8),
    ("bert", "tokenizer.json", 8),
    ("bert", "modules.json", 8),
    ("bert", "1_Pooling/config.json", 8),
    ("bert", "sentence_bert_config.json", 8),
    ("vit", "preprocessor_config.json", 15),
]


@pytest.mark.parametrize(
    ("model", "name", "count"), JSON_FILES, ids=[f"{m} {name}" for m, name, _ in JSON_FILES]
)
def test_a_damaged_file_of_a_model_is_named(copy_of, model, name, count):
    folder = copy_of(model)
    file = folder / name
    whole = json.loads(file.read_text())
    for content in TEXTS.values():
        file.write_bytes(content)
        line = check(lambda: loading.open("m"))
        assert line is None or line.startswith("m")
    for value in by_chance(whole, count):
        file.write_text(json.dumps(value))
        line = check(lambda: loading.open("m"))
        assert line is None or line.startswith("m")
    file.write_text(json.dumps(whole))
    assert loading.open("m")[0].module is not None


@pytest.mark.parametrize("key", ["num_hidden_layers", "depth", "depths"])
def test_a_number_of_layers_that_no_model_has_is_refused_before_they_are_built(copy_of, key):
    folder = copy_of("bert")
    config = json.loads((folder / "config.json").read_text())
    config |= {key: [2, 10**9] if key == "depths" else 10**9}
    (folder / "config.json").write_text(json.dumps(config))
    assert f"m/config.json: {key} is " in check(lambda: loading.open("m"))


def test_a_damaged_manifest_is_named(artefact):
    whole = json.loads((artefact / "pela.json").read_text())
    for content in TEXTS.values():
        (artefact / "pela.json").write_bytes(content)
        assert check(lambda: document.read(Path("a"))).startswith("a/pela.json: ")
    for value in by_chance(whole, 200):
        (artefact / "pela.json").write_text(json.dumps(value))
        line = check(lambda: document.read(Path("a")))
        assert line is None or line.startswith("a/pela.json: ")
    for key in whole:
        (artefact / "pela.json").write_text(
            json.dumps({k: v for k, v in whole.items() if k != key})
        )
        check(lambda: document.read(Path("a")))


def test_a_damaged_plan_is_named(pela, artefact):
    whole = json.loads((artefact / "pela.json").read_text())
    plan = Path("p.json")
    for content in TEXTS.values():
        plan.write_bytes(content)
        assert check(lambda: plan_file.read(plan)).startswith("p.json: ")
    for value in by_chance(whole, 200):
        plan.write_text(json.dumps(value))
        line = check(lambda: plan_file.read(plan))
        assert line is None or line.startswith("p.json: ")
    plan.write_bytes(b"\xef\xbb\xbf" + json.dumps(whole).encode())  # as editors of Windows write it
    assert plan_file.read(plan).layers


def split(raw: bytes):
    """(header, data) of a safetensors file."""
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def joined(header, data=b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def damaged_tensors(raw: bytes):
    """Whole contents of a safetensors file that are not what they were."""
    header, data = split(raw)
    names = [name for name in header if name != "__metadata__"]
    yield from (raw[:end] for end in (0, 1, 8, 9, len(raw) // 2, len(raw) - 1))
    yield from (struct.pack("<Q", size) + raw[8:] for size in (0, 1, 2**63, 2**64 - 1, 10**9))
    yield from (b"PK\x03\x04" + bytes(60), b"\x80\x02}q\x00.", TEXTS["a pointer to Git LFS"])
    yield from (joined(b""), joined(b"[]"), joined({}), joined(b'{"a":' + b"[" * 9999))
    entry = names[0]
    for key, values in {
        "dtype": ["F64", "BOOL", "X9", "", None, "F8_E4M3", "C64"],
        "shape": [[], [0], [-1], [1], ["a"], None, [2**40, 2**40], [2**64]],
        "data_offsets": [[0, 0], [1, 0], [0, 2**60], [-1, 4], None, ["a", "b"]],
    }.items():
        for value in values:
            yield joined({**header, entry: {**header[entry], key: value}}, data)
        yield joined(changed(header, (entry, key), None, drop=True), data)
    for name in ("y" * 5000, "", "a\0b", "\n\x1b[31m"):
        renamed = {name if key == entry else key: value for key, value in header.items()}
        yield joined(renamed, data)
    yield joined({**header, "another": header[entry]}, data)  # two in the same place
    twice = json.dumps({entry: header[entry]})[1:]
    yield joined(f"{json.dumps(header)[:-1]},{twice}".encode(), data)
    chance = random.Random(0)
    for _ in range(25):
        flipped = bytearray(raw)
        for _ in range(chance.choice([1, 3, 20])):
            flipped[chance.randrange(len(raw) - len(data))] = chance.randrange(256)
        yield bytes(flipped)


def test_a_damaged_file_of_weights_is_named(copy_of):
    """What is read is whole, or there is an error."""
    file = copy_of("decomposed") / "model.safetensors"
    raw = file.read_bytes()
    names = {name for name in split(raw)[0] if name != "__metadata__"}
    for content in damaged_tensors(raw):
        file.write_bytes(content)
        line = check(lambda: loading.open("m"))
        if line is None:
            assert names <= set(split(content)[0])
        else:
            assert line.startswith("m")


def test_damaged_spectra_are_named(artefact):
    file = artefact / "spectra.safetensors"
    raw = file.read_bytes()
    for content in damaged_tensors(raw):
        file.write_bytes(content)
        line = check(lambda: stored.load(file))
        assert line is None or line.startswith(str(file))
    header, data = split(raw)
    (key,) = header["__metadata__"]
    about = json.loads(header["__metadata__"][key])
    texts = [json.dumps(value) for value in by_chance(about, 100)]
    texts += [content.decode() for content in TEXTS.values() if content.isascii()]
    for text in texts:
        file.write_bytes(joined({**header, "__metadata__": {key: text}}, data))
        line = check(lambda: stored.load(file))
        assert line is None or line.startswith(str(file))


RECIPE = """
model = "test_vit"
weights = "random"
output = "r"
[decompose]
ratio = "0.5"
[pretrain]
epochs = 1
[pretrain.loss]
task = 1.0
"""
TOML_VALUES = [
    '"x"', '""', "-1", "1e400", "[]", "[[]]", "{}", "{a = 1}", "true", "nan", "1979-05-27",
    '"\\u0000"', f'"{"y" * 5000}"', "9" * 30, "9" * 5000, '["a", 1]', "07:32:00", "[" * 2000,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_recipe_is_named(here):
    file = here / "r.toml"
    texts = [*TEXTS.values(), b"a" + b".a" * 50_000 + b" = 1", b"[" + b"a." * 20_000 + b"a]"]
    texts += [b"x = " + b"{a = " * 3000, b'"' + b"k" * 5000 + b'" = 1', RECIPE.encode() + b"\0"]
    chance = random.Random(0)
    lines = RECIPE.strip().splitlines()
    for _ in range(120):
        at = chance.randrange(len(lines))
        key = lines[at].split(" = ")[0]
        new = f"{key} = {chance.choice(TOML_VALUES)}" if " = " in lines[at] else "[" * 3
        texts.append("\n".join([*lines[:at], new, *lines[at + 1 :]]).encode())
    for text in texts:
        file.write_bytes(text)
        line = check(lambda: reading.load(file))
        assert line is None or line.startswith(str(file))


def test_settings_that_no_builder_takes_are_refused_by_name(refused):
    for model, setting, says in [
        ("test_vit", "patch_size=0", "test_vit: can't be built with these settings: ZeroDivision"),
        ("test_vit", "embed_dim=7", "AssertionError: dim should be divisible by num_heads"),
        (
            "test_vit",
            "depth=1000000000",
            "test_vit: model_args: depth is 1000000000, more than any",
        ),
        ("bert", "num_hidden_layers=1000000000", "bert: model_args: num_hidden_layers is 10000"),
    ]:
        words = ("--weights", "random", "--ratio", "0.9", "--set", f"model_args.{setting}")
        assert says in refused("decompose", model, *words)


def test_samples_on_which_the_model_fails_are_named(pela, here, checkpoint, monkeypatch):
    for name in ("a", "b"):
        (here / "images" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(here / "images" / name / "1.png")

    def fail(*args):
        raise IndexError("index out of range in self")

    monkeypatch.setattr(in_memory, "predict", fail)
    words = ("--arch", "test_vit", "--ratio", "0.9", "--calibrate", "images", "-o", "out")
    code, _, err = pela("decompose", checkpoint, *words)
    assert code == 2
    assert "calibration: " in err.splitlines()[-1]
    assert "fails on float32 [2, 3, 160, 160]: index out of range in self; give samples" in err
    assert not (here / "out").exists()
