"""Texts and their labels, from files and hub datasets: columns, and how classes are numbered."""

from __future__ import annotations

import pytest
from generated_text import write

from pelacli.data.formats.text import open_texts
from pelacli.data.formats.text_columns import Columns
from pelacli.errors import RequestError


def lines(path, *rows):
    return write(path, [dict(zip(("text", "label"), row, strict=True)) for row in rows])


def test_all_splits_number_as_training_does(tmp_path):
    lines(tmp_path / "train.jsonl", ("a", "no"), ("b", "yes"), ("c", "maybe"))
    lines(tmp_path / "validation.jsonl", ("d", "yes"), ("e", "no"))
    held_out = open_texts(str(tmp_path), "val")
    assert held_out.classes == ["maybe", "no", "yes"]
    assert held_out.labels == [2, 1]  # by itself it would say 1, 0
    lines(tmp_path / "validation.jsonl", ("d", "yes"), ("e", "never"))
    with pytest.raises(RequestError, match=r"validation.jsonl, line 2: label 'never'.*maybe, no"):
        open_texts(str(tmp_path), "val")


def test_numbers_are_classes_of_the_training_split(tmp_path):
    lines(tmp_path / "train.jsonl", ("a", 0), ("b", 3), ("c", -1))
    lines(tmp_path / "test.jsonl", ("d", 1))
    train = open_texts(str(tmp_path), "train")
    assert (len(train), train.labels) == (2, [0, 3])  # -1 is no label
    assert train.classes == open_texts(str(tmp_path), "test").classes == ["0", "1", "2", "3"]
    lines(tmp_path / "test.jsonl", ("d", 4))
    with pytest.raises(RequestError, match=r"line 1: label 4 is no class of the training split"):
        open_texts(str(tmp_path), "test")
    lines(tmp_path / "test.jsonl", ("d", -1))
    assert open_texts(str(tmp_path), "test").labels is None


def test_a_number_is_no_class_where_classes_have_names(tmp_path):
    lines(tmp_path / "train.jsonl", ("a", "no"), ("b", "yes"), ("c", "1"))
    for label in (0, "2", 1.5):
        lines(tmp_path / "validation.jsonl", ("d", "1"), ("e", label))
        message = rf"validation.jsonl, line 2: label {label!r} is no class .*, which has 1, no, yes"
        with pytest.raises(RequestError, match=message):
            open_texts(str(tmp_path), "val")


def test_a_training_split_without_labels_leaves_the_numbering_to_the_others(tmp_path):
    (tmp_path / "train.txt").write_text("a\nb\n")
    (tmp_path / "validation.csv").write_text("text,label\nc,yes\nd,no\n")
    texts = open_texts(str(tmp_path), "val")
    assert (texts.labels, texts.classes) == ([1, 0], ["no", "yes"])
    (tmp_path / "train.txt").unlink()
    lines(tmp_path / "train.jsonl", ("a", -1), ("b", ""))
    assert open_texts(str(tmp_path), "val").labels == [1, 0]


def test_a_split_is_one_file(tmp_path):
    for name in ("train.csv", "validation.csv"):
        (tmp_path / name).write_text("text,label\na,yes\n")
    lines(tmp_path / "train.jsonl", ("b", "no"))
    for split in ("train", "validation"):  # classes are numbered by the training split
        with pytest.raises(RequestError, match=r"train.csv and train.jsonl are all the split"):
            open_texts(str(tmp_path), split)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\na,yes\n"),
        ("a.tsv", "text\tlabel\na\tyes\n"),
        ("a.jsonl", '{"text": "a", "label": "yes"}\n'),
        ("a.txt", "a\n"),
    ],
)
def test_a_file_may_begin_with_a_byte_order_mark(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    label = None if name == "a.txt" else 0
    assert open_texts(str(tmp_path / name), "train")[0] == ("a", label)


def test_the_models_own_names_come_first(tmp_path):
    file = lines(tmp_path / "a.jsonl", ("a", "neutral"), ("b", "entailment"))
    order = ("ENTAILMENT", "NEUTRAL", "CONTRADICTION")
    texts = open_texts(str(file), "train", order=order)
    assert texts.labels == [1, 0]
    assert texts.classes == list(order)
    other = open_texts(str(file), "train", order=("cat", "dog"))
    assert other.classes == ["entailment", "neutral"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "label": 1}\n{"text": "b", "label": ""}\n', "line 2: no 'label'"),
        ('{"text": "a", "label": 1.5}\n{"text": "b", "label": 2}\n', "are scores, no classes"),
        ('{"text": "a", "label": -3}\n', "label -3 is no class"),
        ('{"text": 5}\n', "line 1: 'text' is not a text but int"),
        ("[1]\n", "line 1: not a JSON object"),
        ('{"premise": "a"}\n', "no field 'text'.*it has premise"),
    ],
)
def test_mistakes_in_files_are_named_in_one_line(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(RequestError, match=message) as error:
        next(iter(open_texts(str(tmp_path / "a.jsonl"), "train")))
    assert "a.jsonl" in str(error.value)
    assert "\n" not in str(error.value)


def test_columns_are_recognised_or_named(tmp_path):
    (tmp_path / "q.tsv").write_text('question\tsentence\tlabel\nwho "is\tit\tyes\nwhat\tis\tno\n')
    texts = open_texts(str(tmp_path / "q.tsv"), "train")
    assert texts[0] == (('who "is', "it"), 1)
    mine = open_texts(str(tmp_path / "q.tsv"), "train", Columns(("sentence",), "question"))
    assert mine[1] == ("is", 0)
    with pytest.raises(RequestError, match="no column 'premise'; it has question, sentence, label"):
        open_texts(str(tmp_path / "q.tsv"), "train", Columns(("premise",)))


def test_a_hub_dataset_declares_its_classes(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = datasets.Features(
        sentence1=datasets.Value("string"),
        sentence2=datasets.Value("string"),
        label=datasets.ClassLabel(names=["2 stars", "1"]),
    )
    rows = {"sentence1": ["a", "b", "c"], "sentence2": ["d", "e", "f"], "label": [1, -1, 0]}
    made = datasets.Dataset.from_dict(rows, features=features)
    (tmp_path / "data").mkdir()
    made.to_parquet(tmp_path / "data" / "train.parquet")
    texts = open_texts(f"hfds/{tmp_path / 'data'}", "train")
    assert texts.classes == ["2 stars", "1"]
    assert [texts[i] for i in range(len(texts))] == [(("a", "d"), 1), (("c", "f"), 0)]


def test_hub_splits_number_as_the_whole_training_split_does(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    made = {
        "both": {
            "train": {"text": list("abcd"), "label": ["b", "c", "a", "c"]},
            "validation": {"text": ["e"], "label": ["c"]},
        },
        "bare": {
            "train": {"text": ["a"]},
            "test": {"text": list("bcd"), "label": ["z", "y", "x"]},
        },
        "alone": {"test": {"text": list("bcd"), "label": ["z", "y", "x"]}},
    }
    for name, splits in made.items():
        for split, rows in splits.items():
            file = tmp_path / name / f"{split}.parquet"
            file.parent.mkdir(exist_ok=True)
            datasets.Dataset.from_dict(rows).to_parquet(file)
    for name, split, labels, names in [
        ("both", "train[:50%]", [1, 2], list("abc")),
        ("both", "validation", [2], list("abc")),
        ("alone", "test[:2]", [2, 1], list("xyz")),
    ]:
        texts = open_texts(f"hfds/{tmp_path / name}", split)
        assert (texts.labels, texts.classes) == (labels, names)
    with monkeypatch.context() as patch:  # files of one form have the same columns in all splits
        tables = {k: datasets.Dataset.from_dict(v) for k, v in made["bare"].items()}
        patch.setattr(datasets, "get_dataset_split_names", lambda *_: list(tables))
        patch.setattr(datasets, "load_dataset", lambda *_, split: tables[split])
        assert open_texts("hfds/bare", "test").labels == [2, 1, 0]


def test_a_hub_dataset_may_have_a_configuration(monkeypatch):
    import datasets

    asked = []
    rows = datasets.Dataset.from_dict({"sentence": ["a"], "label": ["x"]})
    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda *a: asked.append(a) or ["train"]
    )
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, split: asked.append((*a, split)) or rows
    )
    assert open_texts("hfds/nyu-mll/glue/sst2", "train")[0] == ("a", 0)
    assert asked == [("nyu-mll/glue", "sst2"), ("nyu-mll/glue", "sst2", "train")]
