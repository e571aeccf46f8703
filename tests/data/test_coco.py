"""Boxes in COCO's files and in hub datasets: layouts, what is read, and mistakes that are named."""

from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import ExifTags, Image
from tiny_detectors import detection_data, tiny_detector
from torchvision.ops import box_convert

from pelacli import console
from pelacli.data.formats import coco, hub_objects
from pelacli.errors import RequestError
from pelacli.tasks import registry


def one_image(root, change=lambda content: None, layout="annotations", name="instances_train.json"):
    """A data set of one 40×30 image with two boxes, one of them a crowd."""
    content = {
        "images": [{"id": 9, "file_name": "a.png", "width": 40, "height": 30}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 7, "bbox": [4, 5, 10, 20], "iscrowd": 0,
             "area": 150.5},
            {"id": 2, "image_id": 9, "category_id": 2, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        ],
    }  # fmt: skip
    change(content)
    (root / layout).mkdir(parents=True, exist_ok=True)
    (root / "train").mkdir(exist_ok=True)
    Image.new("RGB", (40, 30)).save(root / "train" / "a.png")
    file = root / layout / name
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("annotations", "instances_train.json"),
        ("annotations", "instances_train2017.json"),
        ("train", "_annotations.coco.json"),
    ],
)
def test_both_layouts_and_a_year_are_found(tmp_path, layout, name):
    file = one_image(tmp_path, layout=layout, name=name)
    if "2017" in name:
        (tmp_path / "train").rename(tmp_path / "train2017")
    found, folders, split = coco.find(str(tmp_path), "train")
    assert (found, split) == (file, "train2017" if "2017" in name else "train")
    images, classes = coco.read(found, folders)
    assert classes == ["cat", "dog"]  # in the order of their ids, 2 and 7
    path, number, objects = images[0]
    assert (path.name, number, len(images)) == ("a.png", 0, 1)
    assert objects.boxes.tolist() == [[4, 5, 14, 25], [0, 0, 40, 30]]
    assert objects.labels.tolist() == [1, 0]
    assert objects.crowd.tolist() == [False, True]
    assert objects.area.tolist() == [150.5, 1200]


def edit(**values):
    return lambda content: content["annotations"][0].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(category_id=3), "annotation 1 of image a.png: unknown category 3; there are 2, 7"),
        (edit(image_id=4), "annotation 1: there is no image 4"),
        (edit(bbox=[35, 5, 10, 5]), r"annotation 1 of image a.png: bbox .* outside .* 40x30"),
        (edit(bbox=[4, 5, -1, 5]), "annotation 1 of image a.png: bbox .* degenerate"),
        (edit(bbox=[4, 5, math.nan, 5]), "bbox .* degenerate"),
        (edit(bbox=[4, 5]), "annotation 1 of image a.png: bbox .* four numbers"),
        (lambda c: c["images"][0].update(file_name="b.png"), "image 9: there is no b.png in "),
        (lambda c: c.pop("categories"), "no list 'categories'"),
        (lambda c: c["images"][0].pop("id"), "images, entry 1: lacks 'id'"),
        (lambda c: c["images"].append(None), "images, entry 2: expected an object, found null"),
        (lambda c: c["images"].append(c["images"][0]), "images, entry 2: image id 9 comes twice"),
        (lambda c: c["categories"].append({"id": 2, "name": "cow"}),
         "categories, entry 3: category id 2 comes twice"),
        (lambda c: c["categories"][0].update(id=[7]), r"entry 1: 'id' is no identifier: \[7\]"),
        (lambda c: c["categories"][0].pop("name"), "a category lacks 'name'"),
        (lambda c: c["categories"][0].update(id="dog"), "category ids are whole numbers"),
        (lambda c: c["annotations"].append(None), "annotations, entry 3: expected an object"),
        (edit(image_id=[9]), r"annotation 1: 'image_id' is no identifier: \[9\]"),
        (edit(category_id=[7]), r"annotation 1 of image a.png: 'category_id' is no identifier"),
        (edit(area="big"), "annotation 1 of image a.png: 'area' is no number of pixels: 'big'"),
        (edit(area=math.inf), "annotation 1 of image a.png: 'area' is no number of pixels: inf"),
        (edit(iscrowd="0"), "annotation 1 of image a.png: 'iscrowd' is neither 0 nor 1: '0'"),
        (lambda c: c["images"][0].update(width="40"), "image 9: 'width' is no number of pix.*'40'"),
    ],
)  # fmt: skip
def test_mistakes_name_file_image_and_annotation(tmp_path, change, message):
    file = one_image(tmp_path, change)
    with pytest.raises(RequestError, match=message) as caught:
        coco.read(*coco.find(str(tmp_path), "train")[:2])
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_may_begin_with_a_byte_order_mark_and_leave_sizes_out(tmp_path):
    file = one_image(tmp_path, lambda c: c["images"][0].update(width=None, height=None))
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert len(coco.read(file, [tmp_path / "train"])[0]) == 1


# The picture that was annotated and the picture of the file --------------------------------------


def sample(root, stored, orientation=1, **annotated):
    """The first sample of a file of this size whose annotation says what is given."""
    one_image(root, lambda content: content["images"][0].update(annotated))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    left, top = stored[0] // 10, stored[1] // 6  # of the first box, in 40×30: 4, 5
    image = Image.new("L", stored)
    image.paste(255, (left, top, stored[0] * 14 // 40, stored[1] * 25 // 30))
    image.save(root / "train" / "a.png", exif=exif)
    task, inputs = registry.get("detection"), tiny_detector("yolos").inputs
    return task.open(detection_data(root), "train", inputs=inputs)[0]


def bright(item):
    """(left, top, right, bottom) of what is bright in the image, in shares of it."""
    rows, columns = torch.nonzero(item["inputs"][0] > 0, as_tuple=True)
    height, width = item["inputs"].shape[-2:]
    edges = [columns.min() / width, rows.min() / height]
    return [*edges, (columns.max() + 1) / width, (rows.max() + 1) / height]


@pytest.mark.parametrize(
    ("stored", "orientation", "annotated"),
    [
        ((40, 30), 1, {}),
        ((40, 30), 6, {}),  # boxes of the picture as it is stored: 40×30 is not the size upright
        ((80, 60), 1, {}),
        ((400, 300), 1, {"width": 40.0, "height": 30.0}),
        ((40, 30), 1, {"width": None, "height": None}),
    ],
)
def test_boxes_lie_around_what_was_annotated(tmp_path, stored, orientation, annotated):
    item = sample(tmp_path, stored, orientation, **annotated)
    box = box_convert(item["boxes"][:1], "cxcywh", "xyxy")[0]
    assert box.tolist() == pytest.approx([4 / 40, 5 / 30, 14 / 40, 25 / 30])
    assert [float(v) for v in bright(item)] == pytest.approx(box.tolist(), abs=0.05)
    assert item["sizes"].tolist() == [stored[1], stored[0]]
    assert item["area"][1] == stored[0] * stored[1]


def test_boxes_of_an_upright_picture_are_its_own(tmp_path):
    item = sample(tmp_path, (30, 40), 6)
    assert item["sizes"].tolist() == [30, 40]
    assert box_convert(item["boxes"][:1], "cxcywh", "xyxy")[0, 0] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("stored", "annotated", "told"),
    [
        ((30, 40), {}, "is 30×40 px, but its annotation says 40×30: not a resized copy"),
        ((40, 20), {}, "is 40×20 px, but its annotation says 40×30"),
        ((32, 32), {}, "is 32×32 px, but its annotation says 40×30"),
        ((20, 15), {"width": None, "height": None}, "lies outside of the picture, 20×15 px"),
        ((20, 15), {"height": None}, "lies outside of the picture, 20×15 px"),
    ],
)
def test_boxes_of_another_picture_are_refused(tmp_path, stored, annotated, told):
    with pytest.raises(RequestError, match=told) as error:
        sample(tmp_path, stored, **annotated)
    assert "a.png: " in str(error.value)


@pytest.mark.parametrize("value", [0, -1, True, "40"])
def test_a_size_that_is_none_is_refused_with_what_to_do(tmp_path, value):
    file = one_image(tmp_path, lambda c: c["images"][0].update(width=value))
    with pytest.raises(RequestError, match=r"'width' is no number of pixels.*leave it out"):
        coco.read(file, [tmp_path / "train"])


def test_resized_copies_are_told_of_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console.verbosity, "said", set())
    for name in "ab":
        sample(tmp_path / name, (20, 15))
    said = capsys.readouterr().err
    assert "is 20×15 px, but its annotation says 40×30; boxes of such resized copies" in said
    assert said.count("note:") == 1


def test_an_image_that_would_have_no_pixels_is_refused_with_what_to_do(tmp_path):
    one_image(tmp_path)
    task, inputs = registry.get("detection"), tiny_detector("yolos").inputs
    dataset = task.open(detection_data(tmp_path, side=5), "train", inputs=inputs)
    with pytest.raises(RequestError, match=r"a\.png: its 40×30 px can't .* larger data.image_size"):
        dataset[0]


def test_the_case_of_a_split_s_folder_does_not_count(tmp_path):
    one_image(tmp_path, layout="Train", name="_annotations.coco.json")
    Image.new("RGB", (40, 30)).save(tmp_path / "Train" / "a.png")
    assert coco.find(str(tmp_path), "train")[2] == "Train"


def test_splits_and_folders_that_are_not_there(tmp_path):
    one_image(tmp_path)
    with pytest.raises(RequestError, match="no split 'val'; it has train"):
        coco.find(str(tmp_path), "val")
    (tmp_path / "else").mkdir()
    task, inputs = registry.get("detection"), tiny_detector("yolos").inputs
    with pytest.raises(RequestError, match="no COCO data"):
        task.open(detection_data(tmp_path / "else"), "train", inputs=inputs)
    with pytest.raises(RequestError, match=r"data\.augment\.mixup: detection has none"):
        task.open(detection_data(tmp_path, mixup=0.5), "train", inputs=inputs, training=True)


def test_a_box_without_area_is_left_out(tmp_path):
    one_image(tmp_path, edit(bbox=[4, 5, 1.03, 0.0]))  # COCO's own train2017 has such
    images, _ = coco.read(*coco.find(str(tmp_path), "train")[:2])
    assert images[0][2].labels.tolist() == [0]


@pytest.mark.parametrize("form", ["xywh", "xyxy"])
def test_rows_of_the_hub(form):
    import datasets

    objects = {
        "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
        "category": datasets.List(datasets.ClassLabel(names=["a", "b"])),
    }
    features = datasets.Features({"image": datasets.Image(), "objects": objects})
    picture = Image.new("RGB", (40, 30))
    row = {"bbox": [[4, 5, 10, 20], [1, 2, 3, 4]], "category": [1, 0]}
    columns = {"image": [picture, None], "objects": [row, row]}
    rows = datasets.Dataset.from_dict(columns, features=features)
    source = hub_objects.rows_of(rows, "hfds/x", form)
    raw, number, found = source[0]
    assert isinstance(raw, bytes)
    assert (number, source.classes, found.labels.tolist()) == (0, ["a", "b"], [1, 0])
    first = [4, 5, 14, 25] if form == "xywh" else [4, 5, 10, 20]
    assert found.boxes[0].tolist() == first
    with pytest.raises(RequestError, match=r"^hfds/x, row 1: has no image; leave the row out$"):
        source[1]
    with pytest.raises(RequestError, match="'objects' column; it has image"):
        hub_objects.rows_of(rows.select_columns("image"), "hfds/x", form)


@pytest.mark.parametrize(
    ("column", "kind", "value", "told"),
    [
        ("area", "float64", float("nan"), "'area' is no number of pixels: nan"),
        ("area", "string", "many", "'area' is no number of pixels: 'many'"),
        ("iscrowd", "string", "0", "'iscrowd' is neither 0 nor 1: '0'"),
    ],
)
def test_what_a_row_of_the_hub_says_of_an_object_is_held_to_coco_s_rules(column, kind, value, told):
    import datasets

    entry = datasets.Features(
        {
            "bbox": datasets.List(datasets.Value("float32")),
            "category": datasets.Value("int64"),
            column: datasets.Value(kind),
        }
    )
    features = datasets.Features({"image": datasets.Image(), "objects": datasets.List(entry)})
    rows = {
        "image": [Image.new("RGB", (40, 30))],
        "objects": [[{"bbox": [4.0, 5.0, 10.0, 20.0], "category": 0, column: value}]],
    }
    table = datasets.Dataset.from_dict(rows, features=features)
    with pytest.raises(RequestError) as error:
        hub_objects.rows_of(table, "hfds/x", "xywh")[0]
    assert str(error.value) == f"hfds/x, row 0, object 0: {told}"
