"""The reader of ALBEF's pre-training JSON."""

from __future__ import annotations

import json

import pytest

from pelacli.errors import RequestError
from pelacli.formats import captions


def write(folder, **files):
    for name, rows in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return str(folder)


def test_files_of_a_split_are_put_together(tmp_path):
    coco = [
        {"image": "a.jpg", "caption": ["A cat.", "Some cat"]},
        {"image": "b.jpg", "caption": "a dog"},
        {"image": "a.jpg", "caption": "one cat"},
    ]
    spec = write(
        tmp_path,
        train_coco=coco,
        train_vg=[{"image": "/abs/c.jpg", "caption": "a bird"}],
        val=[{"image": "v.jpg", "caption": "a fish"}],
    )
    found, name = captions.read(spec, "train")
    assert name == "train"
    assert len(found) == 4
    assert found[0] == (str(tmp_path / "a.jpg"), ("A cat.", "Some cat"), 0)
    assert [row[2] for row in found.rows] == [0, 1, 0, 2]  # one image, one number
    assert found[3][:2] == ("/abs/c.jpg", ("a bird",))
    assert found.name(2) == f"{tmp_path / 'train_coco.json'}, entry 2 ({tmp_path / 'a.jpg'})"
    assert found.name(3).startswith(f"{tmp_path / 'train_vg.json'}, entry 0")
    assert captions.read(spec, "validation")[1] == "val"


def test_a_folder_without_split_names_has_no_splits(tmp_path):
    spec = write(
        tmp_path,
        coco=[{"image": "a.jpg", "caption": "a cat"}],
        sbu=[{"image": "b.jpg", "caption": "a dog"}],
    )
    found, name = captions.read(spec, "train")
    assert (len(found), name) == (2, None)


def test_training_files_alone_are_trained_on_without_validation(tmp_path):
    spec = write(tmp_path, train_coco=[{"image": "a.jpg", "caption": "a cat"}])
    assert captions.read(spec, "train")[1] is None
    with pytest.raises(RequestError, match="no split 'validation'; it has train"):
        captions.read(spec, "validation")


def test_a_single_file_has_no_splits(tmp_path):
    spec = write(tmp_path, coco=[{"image": "a.jpg", "caption": "a cat"}])
    found, name = captions.read(f"{spec}/coco.json", "train", images="/pictures")
    assert name is None
    assert found[0][0] == "/pictures/a.jpg"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"image": "a"}, "train.json: not a list of"),
        (["a.jpg"], 'train.json, entry 0: has no "image"'),
        ([{"image": 3, "caption": "a"}], 'train.json, entry 0: has no "image"'),
        ([{"image": "a"}], 'train.json, entry 0: "caption" is neither a text nor a list of texts'),
        ([{"image": "a", "caption": "x"}, {"image": "a", "caption": []}], "train.json, entry 1:"),
        ([{"image": "a", "caption": ["x", 3]}], "train.json, entry 0:"),
        ([], "the split train is empty"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, rows, message):
    with pytest.raises(RequestError) as caught:
        captions.read(write(tmp_path, train=rows), "train")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_place_is_named(tmp_path):
    with pytest.raises(RequestError, match="no such folder or JSON file"):
        captions.read(str(tmp_path / "x"), "train")
    with pytest.raises(RequestError, match="no JSON files"):
        captions.read(str(tmp_path), "train")
    with pytest.raises(RequestError, match="no split 'test'; it has train"):
        captions.read(write(tmp_path, train=[]), "test")
    (tmp_path / "train.json").write_text("[{")
    with pytest.raises(RequestError, match=r"train\.json: not readable JSON"):
        captions.read(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man, riding a wave!", "a man riding a wave"),
        ('The "left-hand" side/top (of it)', "the left hand side top of it"),
        ("<person> s dog; running...", "person s dog running"),
        (" ".join("abcdefghij" * 4), " ".join("abcdefghij" * 3)),
    ],
)
def test_captions_are_read_as_albef_reads_them(caption, expected):
    assert captions.plain(caption) == expected
