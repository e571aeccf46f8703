"""Folders of images: which are splits and which classes, and what is refused or passed over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from pelacli import console
from pelacli.data import image_files
from pelacli.data.dataset import open_dataset
from pelacli.errors import RequestError
from pelacli.models.inputs import ImageInput
from pelacli.recipe.data import Data
from pelacli.tasks import registry

INPUTS = ImageInput((3, 8, 8), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr(console.verbosity, "said", set())


def picture(*files, size=4):
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size)).save(file)


def tree(root, train="train", val="val", classes=("cat", "dog")):
    """Three images of each class to train on, one to validate."""
    for name in classes:
        picture(*(root / train / name / f"{i}.png" for i in range(3)), root / val / name / "v.png")
    return root


def opened(root, split="train", unlabelled=False):
    return open_dataset(str(root), split, inputs=INPUTS, unlabelled=unlabelled)


def refused(root, *words, split="train", unlabelled=False):
    with pytest.raises(RequestError) as error:
        opened(root, split, unlabelled)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


# Splits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "val"),
    [("Train", "Val"), ("TRAIN", "VALIDATION"), ("Training", "Valid"), ("train", "eval")],
)
def test_splits_are_found_whatever_their_case(tmp_path, train, val):
    tree(tmp_path, train, val)
    assert (len(opened(tmp_path)), opened(tmp_path).split) == (6, train)
    validation = opened(tmp_path, "validation")
    assert (len(validation), validation.split, validation.classes) == (2, val, ["cat", "dog"])
    assert len(opened(tmp_path, unlabelled=True)) == 6


@pytest.mark.parametrize("names", [("training_set", "test_set"), ("seg_train", "seg_test")])
def test_splits_by_another_name_are_no_classes(tmp_path, names):
    tree(tmp_path, *names)
    refused(tmp_path, "looks like a split, with cat, dog in it; call it test")
    assert len(opened(tmp_path / names[0])) == 6
    picture(tmp_path / "b/train_station/0.png", tmp_path / "b/bus/0.png")
    assert opened(tmp_path / "b").classes == ["bus", "train_station"]  # with images in it: a class


def test_one_level_too_many_is_refused_with_the_folder_to_give(tmp_path):
    tree(tmp_path / "set" / "set")
    inner = tmp_path / "set" / "set"
    refused(tmp_path / "set", "one level too deep", "holds train, val", f"give {inner}")
    picture(tmp_path / "flat/flat/cat/0.png", tmp_path / "flat/flat/dog/0.png")
    refused(tmp_path / "flat", "holds cat, dog", f"give {tmp_path / 'flat' / 'flat'}")
    tree(tmp_path / "twice", "train/train", "val/val")
    refused(tmp_path / "twice", "train/train: looks like a split", "with cat, dog in it")


def test_splits_inside_of_classes_are_refused(tmp_path):
    picture(*(tmp_path / c / s / "0.png" for c in ("cat", "dog") for s in ("train", "val")))
    refused(tmp_path, "cat/train: a split inside of a class folder", "train/cat")


def test_images_outside_of_class_folders_are_refused_or_counted(tmp_path, capsys):
    picture(tmp_path / "few/train/0.png")
    refused(tmp_path / "few", "outside of any class folder", "a folder for each class")
    (tmp_path / "few/train/metadata.csv").write_text("file_name,label\n0.png,1\n")
    refused(tmp_path / "few", "put hfds/ before the dataset's path")
    assert len(opened(tmp_path / "few", unlabelled=True)) == 1
    picture(tree(tmp_path / "some") / "train" / "loose.png")
    capsys.readouterr()
    assert len(opened(tmp_path / "some")) == 6
    assert "1 images lie outside of any class folder and are left out (loose.png" in (
        capsys.readouterr().err
    )


def test_a_class_called_train_is_not_taken_for_the_split_in_silence(tmp_path):
    picture(*(tmp_path / name / "0.png" for name in ("bus", "car", "train")))
    refused(tmp_path, "train is read as a split; if it is a class, as bus, car may be, move all")
    assert opened(tree(tmp_path / "b", classes=("bus", "train"))).classes == ["bus", "train"]


# Classes ----------------------------------------------------------------------------------------


def test_all_splits_number_classes_as_training_does(tmp_path):
    (tree(tmp_path) / "val/cat/v.png").unlink()
    validation = opened(tmp_path, "val")
    assert (validation.classes, validation[0]["labels"]) == (["cat", "dog"], 1)
    picture(tmp_path / "val/Cat/v.png")
    refused(tmp_path, "val/Cat: the training split has no such class, but 'cat'", split="val")
    (tmp_path / "val/Cat").rename(tmp_path / "val/bird")
    refused(tmp_path, "val/bird: the training split has no such class", split="val")


@pytest.mark.parametrize("names", [("cat", "Cat"), ("caf\u00e9", "cafe\u0301"), ("dog", "dog ")])
def test_names_that_a_user_takes_for_one_are_refused(tmp_path, names):
    tree(tmp_path, classes=names)
    if len(list((tmp_path / "train").iterdir())) == 1:
        pytest.skip("the file system takes them for one too")
    refused(tmp_path, "are one name, spelt in two ways")


def test_a_name_that_is_no_utf8_is_refused(tmp_path):
    tree(tmp_path)
    try:
        os.rename(os.fsencode(tmp_path / "train/dog"), os.fsencode(tmp_path) + b"/train/d\xf6g")
    except OSError:
        pytest.skip("the file system refuses it too")
    refused(tmp_path, "train/d\\xf6g: the name of a class is not UTF-8")


def test_one_class_is_nothing_to_classify_unless_the_model_names_it(tmp_path):
    tree(tmp_path, classes=("cat",))
    task, data = registry.get("image-classification"), Data(dataset=str(tmp_path))
    with pytest.raises(RequestError, match=r"has one class only \(cat\)"):
        task.open(data, "train", inputs=INPUTS, training=True)
    named = ImageInput((3, 8, 8), (0.5,) * 3, (0.5,) * 3, labels=("bird", "cat"))
    assert task.open(data, "val", inputs=named)[0]["labels"] == 1


def test_a_model_is_not_judged_by_classes_that_it_lacks(tmp_path, capsys):
    task, data = registry.get("image-classification"), Data(dataset=str(tree(tmp_path)))

    def labels(*names):
        named = ImageInput((3, 8, 8), (0.5,) * 3, (0.5,) * 3, labels=names)
        dataset = task.open(data, "val", inputs=named)
        return [dataset[i]["labels"] for i in range(2)]

    assert labels("Dog", "bird", "Cat") == [2, 0]
    with pytest.raises(RequestError, match="the model has no class 'cat', but dog, bird"):
        labels("dog", "bird")
    capsys.readouterr()
    assert labels("tench", "goldfish") == [0, 1]
    said = capsys.readouterr().err
    assert "none of its classes (cat, dog, …) is called as one of the model's (tench" in said


def test_empty_class_folders_are_told_of(tmp_path, capsys):
    (tree(tmp_path) / "train" / "bird").mkdir()
    for _ in range(2):
        assert opened(tmp_path).classes == ["cat", "dog"]
    said = capsys.readouterr().err
    assert "train: folders without images are no classes: bird" in said
    assert said.count("note:") == 1


# Files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ending",
    [
        "jfif",
        "JPG",
        "jpe",
        "avif",
        "tif",
        "TIFF",
        "webp",
        "gif",
        "bmp",
        "ppm",
        "jp2",
        "apng",
        "ico",
    ],
)
def test_what_pillow_reads_is_read(tmp_path, ending):
    picture(tmp_path / f"x.{ending}", size=16)  # Pillow 12 saves a smaller icon without an image
    assert opened(tmp_path, unlabelled=True)[0]["inputs"].shape == (3, 8, 8)


def test_other_files_are_counted_and_named(tmp_path, capsys):
    root = tree(tmp_path)
    for name in ("a.heic", "b.HEIC", "notes.txt", "README"):
        (root / "train" / "cat" / name).write_bytes(b"x")
    for unlabelled in (False, True):
        console.verbosity.said.clear()
        assert len(opened(root, unlabelled=unlabelled)) == 6
        said = capsys.readouterr().err
        assert "train: 4 files are left out" in said
        assert "2 .heic, 1 without an ending, 1 .txt" in said


def test_a_folder_or_class_of_other_pictures_alone_is_refused(tmp_path):
    for file in tree(tmp_path).glob("train/cat/*"):
        file.rename(file.with_suffix(".heic"))
    refused(tmp_path, "train/cat: no images that Pillow reads", "3 .heic", "convert them")
    refused(tmp_path / "train/cat", "no images that Pillow reads", "3 .heic", unlabelled=True)
    refused(tmp_path / "train/cat", "no images that Pillow reads", "3 .heic")


def test_what_editors_and_archives_leave_behind_is_neither_class_nor_sample(tmp_path, capsys):
    root = tree(tmp_path)
    for folder in (root, root / "train", root / "val", root / "train" / "cat"):
        for junk in (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git", "$RECYCLE.BIN"):
            picture(folder / junk / "0.png")
        for junk in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", ".hidden.png"):
            (folder / junk).write_bytes(b"x")
    capsys.readouterr()
    dataset = opened(root)
    assert (len(dataset), dataset.classes, len(opened(root, "val"))) == (6, ["cat", "dog"], 2)
    assert len(opened(root / "train", unlabelled=True)) == 6
    assert capsys.readouterr().err == ""


def test_what_was_left_behind_is_no_class_of_a_hub_dataset(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    picture(tree(tmp_path / "set") / "train" / "@eaDir" / "0.png")
    refused(f"hfds/{tmp_path / 'set'}", "@eaDir was left behind by a program and is no class")


def test_links_are_followed_once_and_never_up(tmp_path):
    root = tree(tmp_path / "set")
    (root / "train/cat/self").symlink_to(".")
    (root / "train/cat/up").symlink_to("../..")
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").symlink_to("../elsewhere")
    dataset = opened(root)
    assert [dataset[i]["labels"] for i in range(len(dataset))] == [0, 0, 0, 1, 1, 1]
    (root / "train/bird").symlink_to("cat")
    refused(root, "bird and cat are, by a link, one folder")


def test_the_order_is_that_of_numbers_and_the_same_on_every_file_system(tmp_path):
    picture(*(tmp_path / name for name in ("10.png", "2.png", "B.png", "b.png", "a/1.png")))
    names = [os.path.relpath(file, tmp_path) for file in image_files.below(tmp_path).images]
    assert names == ["2.png", "10.png", "a/1.png", "B.png", "b.png"]
