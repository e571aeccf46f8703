"""The reader of images with captions, where a split is several files."""

from __future__ import annotations

import json

import pytest

from pelacli.data.formats import captions
from pelacli.errors import RequestError
from pelacli.tasks import registry


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
    found, name = captions.read(spec, "train", None, together=False)
    assert name == "train"
    assert [(one.image, one.captions, one.number) for one in found] == [
        (str(tmp_path / "a.jpg"), ["A cat.", "Some cat"], 0),
        (str(tmp_path / "b.jpg"), ["a dog"], 1),
        (str(tmp_path / "a.jpg"), ["one cat"], 0),  # one image, one number
        ("/abs/c.jpg", ["a bird"], 2),
    ]
    assert found[2].where == f"{tmp_path / 'train_coco.json'}, entry 3"
    whole, _ = captions.read(f"{spec}/train_coco.json", "train", None)
    assert [(one.number, one.captions) for one in whole] == [
        (0, ["A cat.", "Some cat", "one cat"]),
        (1, ["a dog"]),
    ]
    assert captions.read(spec, "validation", None)[1] == "val"


def test_numbers_of_images_are_a_file_s_own(tmp_path):
    row = {"image_id": 1, "caption": "a cat"}
    spec = write(
        tmp_path, train_a=[row | {"image": "a.jpg"}] * 2, train_b=[row | {"image": "b.jpg"}]
    )
    found, _ = captions.read(spec, "train_a.json, train_b.json", None)
    assert [(one.number, len(one.captions)) for one in found] == [(0, 2), (1, 1)]


def test_a_folder_without_split_names_has_no_splits(tmp_path):
    spec = write(
        tmp_path,
        coco=[{"image": "a.jpg", "caption": "a cat"}],
        sbu=[{"image": "b.jpg", "caption": "a dog"}],
    )
    found, name = captions.read(spec, "train", None, together=False)
    assert (len(found), name) == (2, None)
    assert len(captions.read(spec, "sbu.json", None)[0]) == 1


def test_a_split_that_is_not_there_is_named(tmp_path):
    spec = write(tmp_path, train_coco=[{"image": "a.jpg", "caption": "a cat"}])
    with pytest.raises(RequestError, match=r"no split .validation.; it has .*train"):
        captions.read(spec, "validation", None)


def test_a_single_file_has_no_splits(tmp_path):
    spec = write(tmp_path, coco=[{"image": "a.jpg", "caption": "a cat"}])
    found, name = captions.read(f"{spec}/coco.json", "train", "/pictures")
    assert name is None
    assert found[0].image == "/pictures/a.jpg"


COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [{"image_id": 1, "caption": "a cat"}],
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"images": None}, "images: expected a list of entries, found null"),
        ({"images": [5]}, "images, entry 1: expected an object, found a number"),
        ({"images": [COCO["images"][0]] * 2}, "images, entry 2: image id 1 comes twice"),
        ({"annotations": {}}, "annotations: expected a list of entries, found an object"),
        ({"annotations": [None]}, "annotations, entry 1: expected an object, found null"),
    ],
)
def test_mistakes_in_coco_files_are_named(tmp_path, change, told):
    write(tmp_path, val=COCO | change)
    with pytest.raises(RequestError) as error:
        captions.read(str(tmp_path / "val.json"), "val", None)
    assert str(error.value).startswith(f"{tmp_path / 'val.json'}, {told}")


def test_lines_end_at_line_feeds_alone_and_files_may_begin_with_a_mark(tmp_path):
    said = ["one\u2028two", "three\x85four"]
    rows = [json.dumps({"image": "a", "caption": one}, ensure_ascii=False) for one in said]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(rows), encoding="utf-8-sig", newline="\r\n")
    assert captions.read(str(file), "train", None)[0][0].captions == said
    (tmp_path / "a.json").write_text(f"[{rows[0]}]", encoding="utf-8-sig")
    assert captions.read(str(tmp_path / "a.json"), "train", None)[0][0].captions == said[:1]


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
    assert registry.get("vision-language").wording(caption) == expected
