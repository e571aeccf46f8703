"""Rows of text files that are not what their header says, as the command line meets them."""

from __future__ import annotations

import gzip
import json

import pytest

from pelacli.data.formats.text import open_texts
from pelacli.errors import RequestError

A, B = '{"text": "w1", "label": "a"}\n', '{"text": "w2", "label": "b"}\n'
TABLE = "text,label\nw1,a\nw2,b\n"


def opened(tmp_path, name, content, **options):
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(raw)
    return open_texts(str(tmp_path / name), "train", **options)


REFUSED = {
    "unquoted comma": ("a.csv", "text,label\nw1,a\nw1, w2,b\n", "line 3: has 3 of the 2 fields"),
    "too few fields": ("a.csv", "text,label\nw1,a\nw1\n", "line 3: has 1 of the 2 fields"),
    "comma at the end": ("a.csv", "text,label\nw1,a,\n", "line 2: has 3 of the 2 fields"),
    "too few in tsv": ("a.tsv", "text\tlabel\nw1\ta\nw1\n", "line 3: has 1 of the 2 fields"),
    "quote never closed": ("a.csv", 'text,label\nw0,a\n"w1,a\nw2,b\n', "line 3: a double quote"),
    "text behind a quote": ("a.csv", 'text,label\n"w1" w2,a\n', "line 2: a quoted field goes on"),
    "tabs in csv": ("a.csv", "text\tlabel\nw1\ta\n", "line 1: tabs .*call the file .tsv"),
    "commas in tsv": ("a.tsv", TABLE, "line 1: commas .*call the file .csv"),
    "name twice": ("a.csv", "text,label,label\nw1,a,b\n", "line 1: names two columns 'label'"),
    "no header": ("a.csv", "w1 k2,a\nw2,b\n", "the first line of a table must name them"),
    "header alone": ("a.csv", "text,label\n", "no sentences"),
    "empty file": ("a.jsonl", "", "no sentences"),
    "NUL": ("a.csv", "text,label\nw1\0,a\n", "line 2: has a NUL character"),
    "Latin-1": ("a.csv", "text,label\nw1,a\n\xe9,b\n".encode("latin-1"), "line 3: .*UTF-8.*0xe9"),
    "UTF-16": ("a.csv", TABLE.encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "packed, not called so": ("a.csv", gzip.compress(TABLE.encode()), "call it a.csv.gz"),
    "packed and cut off": ("a.csv.gz", gzip.compress(TABLE.encode())[:-9], "cannot be read"),
    "array": ("a.jsonl", json.dumps([{"text": "a"}]), "line 1: not a JSON object but a list"),
    "several lines": ("a.jsonl", '{\n"text": "a"}\n', "line 1: not JSON.*one object a line"),
    "comma behind": ("a.jsonl", A.strip() + ",\n", "line 1: not JSON.*one object a line"),
    "key twice": ("a.jsonl", A + '{"text": "a", "text": "b"}', "line 2: the key 'text' .*twice"),
    "half a pair": ("a.jsonl", A + r'{"text": "\ud800"}', r"line 2: \\ud800 is half"),
    "half a pair, label": ("a.jsonl", r'{"text": "w1", "label": "\uDC00"}', r"\\udc00 is half"),
    "deep": ("a.jsonl", A + "[" * 100_000 + "]" * 100_000, "line 2: .*nested too deeply"),
    "long number": ("a.jsonl", A + '{"text": ' + "9" * 5000 + "}", "line 2: not JSON"),
    "text is a list": ("a.jsonl", '{"text": ["w1"]}', "line 1: 'text' is not a text but list"),
    "nan text": ("a.csv", "text,label\nw1,a\nNaN,b\n", "line 3: text is 'NaN', which programs"),
    "null text": ("a.csv", "text,label\nw1,a\nnull,b\n", "line 3: text is 'null'"),
    "nan class": ("a.csv", "text,label\nw1,a\nw2,nan\n", "line 3: label 'nan' is what programs"),
    "null class": ("a.csv", "text,label\nw1,a\nw2,null\n", "line 3: label 'null'"),
    "empty class": ("a.csv", "text,label\nw1,a\nw2,\n", "line 3: no 'label'"),
    "NaN in JSON": ("a.jsonl", A + '{"text": "w2", "label": NaN}', "line 2: no 'label'"),
    "Infinity": ("a.jsonl", '{"text": "w2", "label": Infinity}', "line 1: label inf is no class"),
    "list as class": ("a.jsonl", '{"text": "w2", "label": ["a"]}', r"label \['a'\] is no class"),
    "capitals": ("a.csv", "text,label\nw1,True\nw2,true\n", "'True' and 'true' differ in capitals"),
    "ids": ("a.csv", "text,label\nw1,0\nw2,99999999999\n", "go up to 99999999999"),
    "decimal commas": ("a.csv", 'text,label\nw1,"1,5"\nw2,"2,5"\n', "are scores, no classes"),
    "other kind of file": ("a.ndjson", A, "text is read from .txt, .jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_row_that_is_not_what_its_header_says_is_refused_by_its_line(tmp_path, case):
    name, content, message = REFUSED[case]
    with pytest.raises(RequestError, match=message) as error:
        opened(tmp_path, name, content)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


READ = {
    "semicolons": ("a.csv", "text;label\nw1;a\nw2, w3;b\n", ["w1", "w2, w3"]),
    "carriage returns": ("a.csv", TABLE.replace("\n", "\r"), ["w1", "w2"]),
    "blank lines": ("a.csv", "\n\ntext,label\n\nw1,a\n,\n\nw2,b\n\n", ["w1", "w2"]),
    "blanks in the header": ("a.csv", "text , label\nw1,a\nw2,b\n", ["w1", "w2"]),
    "capitals in the header": ("a.csv", "Text,LABEL\nw1,a\nw2,b\n", ["w1", "w2"]),
    "mark and capitals": ("a.csv", "\ufeffText,label\nw1,a\nw2,b\n", ["w1", "w2"]),
    "column of numbers": ("a.csv", ",text,label\n0,w1,a\n1,w2,b\n", ["w1", "w2"]),
    "blanks around classes": ("a.csv", "text,label\nw1, a\nw2,b \n", ["w1", "w2"]),
    "capitals in the ending": ("a.CSV", TABLE, ["w1", "w2"]),
    "line break in quotes": ("a.csv", 'text,label\n"w\n1",a\nw2,b\n', ["w\n1", "w2"]),
    "long field": ("a.csv", f"text,label\n{'w' * 200_000},a\nw2,b\n", ["w" * 200_000, "w2"]),
    "packed table": ("a.csv.gz", gzip.compress(TABLE.encode()), ["w1", "w2"]),
    "packed JSON": ("a.jsonl.gz", gzip.compress((A + B).encode()), ["w1", "w2"]),
    "whole pair": ("a.jsonl", r'{"text": "\ud83d\ude00", "label": "a"}' + "\n" + B, ["😀", "w2"]),
    "numbers in csv": ("a.csv", "text,label\n5,a\nw2,b\n", ["5", "w2"]),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_a_file_that_says_what_it_means_is_read(tmp_path, case):
    name, content, wanted = READ[case]
    texts = opened(tmp_path, name, content)
    assert [texts[i] for i in range(len(texts))] == list(zip(wanted, [0, 1], strict=True))
    assert texts.classes == ["a", "b"]


@pytest.mark.parametrize(
    "labels",
    [
        ("0", "1", "1"), ("0.0", "1.0", "1"), ("0", "1.", "1.0"),  # csv
        (0, 1, 1), (0.0, 1.0, 1.0), (0, "1", 1.0), (False, True, 1), ("0", 1, True),  # JSON
    ],
)  # fmt: skip
def test_a_number_is_one_class_however_it_is_written(tmp_path, labels):
    rows = [{"text": "w", "label": label} for label in labels]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    texts = opened(tmp_path, "a.jsonl", lines)
    assert (texts.labels, texts.classes) == ([0, 1, 1], ["0", "1"])
    if all(isinstance(label, str) for label in labels):
        table = "text,label\n" + "".join(f"w,{label}\n" for label in labels)
        assert opened(tmp_path, "a.csv", table).labels == [0, 1, 1]


def test_a_number_among_names_is_one_class_however_it_is_written(tmp_path):
    rows = [{"text": "w", "label": label} for label in ("none", 1, "1", 1.0)]
    texts = opened(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert (texts.labels, texts.classes) == ([1, 0, 0, 0], ["1", "none"])


def test_an_error_behind_rows_that_are_left_out_names_the_line_of_the_file(tmp_path):
    table = "text,label\n\nw1,0\n,0\nw2,-1.0\n\nw3,1\n"
    texts = opened(tmp_path, "a.csv", table)
    assert [texts.name(i).rpartition(", ")[2] for i in range(len(texts))] == ["line 3", "line 7"]
    (tmp_path / "train.csv").write_text("text,label\nw1,a\nw2,b\n")
    (tmp_path / "a.csv").rename(tmp_path / "val.csv")
    with pytest.raises(RequestError, match=r"val.csv, line 3: label '0' is no class"):
        open_texts(str(tmp_path), "val")


def test_rows_without_text_are_left_out_with_a_word(tmp_path, capsys):
    texts = opened(tmp_path, "a.csv", "text,label\nw1,a\n  ,b\nw3,a\n")
    assert len(texts) == 2
    assert "1 of 3 rows have no text and are left out" in capsys.readouterr().err


@pytest.mark.parametrize("score", ["inf", "1e400", "nan", '"1,5"', "high", "1_0", "true"])
def test_a_score_is_a_finite_number(tmp_path, score):
    with pytest.raises(RequestError, match=r"a.csv, line 3: .* is no score"):
        opened(tmp_path, "a.csv", f"text,score\nw1,0.5\nw2,{score}\n", scores=True)


# Hub datasets ------------------------------------------------------------------------------------

TEXTS = ["w1", "w2", "w3"]
ODD = {
    "null text": ({"text": ["w1", None, "w3"]}, "train, row 1: has no 'text'"),
    "numbers as text": ({"text": [1, 2, 3]}, "'text' holds no texts but .*int64"),
    "lists as text": ({"text": [["w1"], ["w2"], []]}, "'text' holds no texts but List"),
    "NaN label": ({"text": TEXTS, "label": [0.0, float("nan"), 1.0]}, "row 1: no 'label'"),
    "null label": ({"text": TEXTS, "label": [0, None, 1]}, "row 1: no 'label'"),
    "lists as labels": ({"text": TEXTS, "label": [[0], [1], [0, 1]]}, r"label \[0\] is no class"),
}


def hub(tmp_path, monkeypatch, rows):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "data" / "train.parquet")
    return open_texts(f"hfds/{tmp_path / 'data'}", "train")


@pytest.mark.parametrize("case", ODD)
def test_columns_of_odd_types_are_refused_by_their_row(tmp_path, monkeypatch, case):
    rows, message = ODD[case]
    with pytest.raises(RequestError, match=message):
        hub(tmp_path, monkeypatch, rows)


@pytest.mark.parametrize("labels", [[0.0, 1.0, 1.0], ["0", "1.0", "1"], [False, True, True]])
def test_labels_of_any_type_of_a_hub_dataset_are_the_same_classes(tmp_path, monkeypatch, labels):
    texts = hub(tmp_path, monkeypatch, {"Text": TEXTS, "Label": labels})
    assert (texts.labels, texts[2]) == ([0, 1, 1], ("w3", 1))
