"""Every reader opens a hub dataset by its name, its configuration and a slice of a split."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from pelacli.data.formats import captions, entailment, hub_objects, questions
from pelacli.data.formats.masks import open_masks
from pelacli.data.formats.text import open_texts
from pelacli.data.sources import open_source
from pelacli.errors import RequestError

# What a reader made of a split: the number of each row, and the split's name.
Read = tuple[list[int], str | None]


def red(raw: bytes) -> int:
    """The number of a row, which is how red its image is."""
    return Image.open(io.BytesIO(raw)).getpixel((0, 0))[0]


def read_images(spec: str, split: str) -> Read:
    source, name, _ = open_source(spec, split, training=False, unlabelled=False)
    return [red(source[i][0]) for i in range(len(source))], name


def read_texts(spec: str, split: str) -> Read:
    texts = open_texts(spec, split)
    return [int(texts[i][0]) for i in range(len(texts))], texts.split


def read_captions(spec: str, split: str) -> Read:
    entries, name = captions.read(spec, split, None)
    return [red(one.image.read()) for one in entries], name


def read_objects(spec: str, split: str) -> Read:
    rows, _, name = hub_objects.find(spec, split, "xywh")
    return [red(rows[i][0]) for i in range(len(rows))], name


def read_masks(spec: str, split: str) -> Read:
    source, name, _ = open_masks(spec, split)
    return [red(source[i][0]) for i in range(len(source))], name


def read_questions(spec: str, split: str) -> Read:
    entries, name = questions.read(spec, split, {})
    return [red(one.image.read()) for one in entries], name


def read_claims(spec: str, split: str) -> Read:
    entries, name = entailment.read(spec, split, None)
    return [red(one.image.read()) for one in entries], name


WORDS = datasets.Value("string")
OBJECTS = {
    "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
    "category": datasets.List(datasets.ClassLabel(names=["a", "b"])),
}
MASK = Image.fromarray(np.zeros((9, 9), np.uint8))
# task → (its reader, the columns beside the image, what they hold)
READERS: dict[str, tuple[Callable[[str, str], Read], dict[str, Any], dict[str, Any]]] = {
    "image-classification": (read_images, {"label": datasets.Value("int64")}, {"label": 1}),
    "text-classification": (read_texts, {"label": WORDS}, {"label": "x"}),
    "retrieval": (read_captions, {"caption": WORDS}, {"caption": "a cat"}),
    "detection": (
        read_objects,
        {"objects": OBJECTS},
        {"objects": {"bbox": [[1, 1, 2, 2]], "category": [1]}},
    ),
    "segmentation": (read_masks, {"mask": datasets.Image()}, {"mask": MASK}),
    "vqa": (
        read_questions,
        {"question": WORDS, "answer": WORDS},
        {"question": "what?", "answer": "yes"},
    ),
    "entailment": (
        read_claims,
        {"sentence": WORDS, "label": WORDS},
        {"sentence": "a cat", "label": "neutral"},
    ),
}


@pytest.fixture(params=READERS)
def task(request, monkeypatch, tmp_path) -> str:
    """The name of a task whose reader is tried."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return request.param


def table(task: str, numbers: Iterable[int]) -> datasets.Dataset:
    """Rows of these numbers, as the task's reader wants them."""
    _, columns, content = READERS[task]
    numbers = list(numbers)
    if task == "text-classification":
        first, feature = "text", WORDS
        shown: list[Any] = [str(number) for number in numbers]
    else:
        first, feature = "image", datasets.Image()
        shown = [Image.new("RGB", (9, 9), (number, 0, 0)) for number in numbers]
    rows = {first: shown} | {name: [value] * len(numbers) for name, value in content.items()}
    return datasets.Dataset.from_dict(rows, features=datasets.Features({first: feature} | columns))


def on_disk(folder: Path, task: str) -> Path:
    """A dataset of two configurations: the rows of "one" are 0 to 3, and of "two" 10 to 13."""
    lines = ["---", "configs:"]
    for first, name in ((0, "one"), (10, "two")):
        files = folder / f"files-{name}"
        files.mkdir(parents=True)
        table(task, range(first, first + 4)).to_parquet(files / "train.parquet")
        lines += [f"- config_name: {name}", f"  data_files: {files.name}/train.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def test_a_reader_opens_a_configuration_of_a_folder(task, tmp_path):
    folder = on_disk(tmp_path / "data", task)
    read = READERS[task][0]
    assert read(f"hfds/{folder}/two", "train") == ([10, 11, 12, 13], "train")
    assert read(f"hfds/{folder}/one", "train") == ([0, 1, 2, 3], "train")


def test_a_reader_opens_a_slice(task, tmp_path):
    folder = on_disk(tmp_path / "data", task)
    read = READERS[task][0]
    assert read(f"hfds/{folder}/two", "train[:50%]") == ([10, 11], "train[:50%]")
    (tmp_path / "plain").mkdir()
    table(task, range(5)).to_parquet(tmp_path / "plain" / "validation.parquet")
    assert read(f"hfds/{tmp_path / 'plain'}", "validation[3:]") == ([3, 4], "validation[3:]")


def test_a_reader_asks_the_hub_for_the_configuration(task, monkeypatch):
    asked = []
    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda *a: asked.append(a) or ["validation"]
    )
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, split: asked.append((*a, split)) or table(task, [7])
    )
    read = READERS[task][0]
    assert read("hfds/owner/name/config", "val") == ([7], "validation")
    # A reader of texts looks at the training split as well, for the classes that it has.
    assert asked[:2] == [("owner/name", "config"), ("owner/name", "config", "validation")]
    asked.clear()
    assert read("hfds/owner/name", "val[:1]") == ([7], "val[:1]")
    assert asked[0] == ("owner/name", None, "val[:1]")


def test_what_cannot_be_opened_is_one_line(task, tmp_path):
    folder = on_disk(tmp_path / "data", task)
    read = READERS[task][0]
    for spec, split, said in [
        (f"hfds/{folder}/two", "val", "no split 'val'; it has train"),
        (f"hfds/{folder}/two", "val[:50%]", "split 'val[:50%]': cannot be opened: "),
        (f"hfds/{folder}/three", "train", "split 'train': cannot be opened: "),
        (f"hfds/{tmp_path / 'nothing'}", "train", "no such folder"),
    ]:
        with pytest.raises(RequestError) as error:
            read(spec, split)
        assert str(error.value).startswith(f"{spec}")
        assert said in str(error.value)
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(RequestError, match=r"'three' not found\. Available: \['one', 'two'\]"):
        read(f"hfds/{folder}/three", "train")


def test_a_folder_may_be_named_from_the_home_or_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = on_disk(tmp_path / "data", "text-classification")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "HOME", str(tmp_path))
    for spec in ("hfds/data/two", "hfds/./data/two", "hfds/~/data/two", f"hfds/{folder}/two/"):
        assert read_texts(spec, "train") == ([10, 11, 12, 13], "train"), spec


def test_a_folder_of_the_owner_s_name_hides_no_dataset_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "owner").mkdir()
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda *a: asked.append(a) or ["train"]
    )
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, split: table("text-classification", [7])
    )
    assert read_texts("hfds/owner/name", "train")[0] == [7]
    assert asked == [("owner/name", None)]
