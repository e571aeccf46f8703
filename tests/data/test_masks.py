"""Images with masks: which layouts are read, and what a mistake is told as."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from pelacli.data.formats.mask_numbers import class_numbers
from pelacli.data.formats.masks import open_masks
from pelacli.data.loader import loader
from pelacli.data.seeding import seeded
from pelacli.errors import RequestError
from pelacli.models.inputs import ImageInput, TextInput
from pelacli.recipe.data import Augment, Data
from pelacli.tasks import registry

INPUTS = ImageInput((3, 8, 8), (0.5,) * 3, (0.5,) * 3)
PALETTE = [0, 0, 0, 255, 0, 0, 0, 255, 0]


def picture(path, width=12, height=10, colour=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (colour, 0, 0)).save(path)


def mask(path, numbers=None, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.arange(120).reshape(10, 12) % 3 if numbers is None else np.asarray(numbers)
    image = Image.fromarray(numbers.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        image = image.copy()
        image.putpalette(PALETTE)
    image.save(path)


@pytest.fixture
def ade(tmp_path):
    """images/SPLIT and annotations/SPLIT, with classes.txt."""
    for split, count in (("training", 3), ("validation", 2)):
        for index in range(count):
            picture(tmp_path / "images" / split / f"{index}.jpg")
            mask(tmp_path / "annotations" / split / f"{index}.png")
    (tmp_path / "classes.txt").write_text("ground\nsky\nsea\n")
    return tmp_path


def opened(root, split="train", inputs=INPUTS, data=None, training=False, unlabelled=False, **args):
    section = Data(dataset=str(root), **(data or {}))
    task = registry.get("segmentation", args)
    return task.open(section, split, inputs=inputs, training=training, unlabelled=unlabelled)


def test_the_layout_of_ade20k(ade):
    dataset = opened(ade)
    assert (len(dataset), dataset.split) == (3, "training")
    assert dataset.classes == ["ground", "sky", "sea"]
    assert len(opened(ade, "validation")) == 2
    item = dataset[0]
    assert item["inputs"].shape == (3, 8, 8)
    # Stretched to the model's square; the mask is as it was annotated.
    assert torch.equal(item["masks"], torch.arange(120).reshape(10, 12) % 3)
    assert float(item["inputs"].mean(dim=(1, 2))[1]) == -1.0


@pytest.mark.parametrize("names", [("images", "masks"), ("images", "labels")])
def test_a_folder_for_each_split(tmp_path, names):
    for split in ("train", "val"):
        picture(tmp_path / split / names[0] / "deep" / "a.png")
        mask(tmp_path / split / names[1] / "deep" / "a.png", mode="P")
    dataset = opened(tmp_path, "validation", classes=3)
    assert (len(dataset), dataset.split, dataset.num_classes) == (1, "val", 3)
    assert set(dataset[0]["masks"].unique().tolist()) == {0, 1, 2}


def test_without_splits(tmp_path):
    picture(tmp_path / "images" / "a.jpg")
    mask(tmp_path / "masks" / "a.png", mode="I;16")
    dataset = opened(tmp_path, "anything", classes=3)
    assert (len(dataset), dataset.split) == (1, None)
    assert dataset[0]["masks"].dtype == torch.int64


def test_a_hub_dataset(tmp_path):
    import datasets

    pictures = [Image.new("RGB", (12, 10), (i, 0, 0)) for i in range(3)]
    drawn = [Image.fromarray(np.full((10, 12), i, np.uint8)) for i in range(3)]
    rows = {"image": [*pictures, None], "annotation": [*drawn[:2], None, drawn[2]]}
    features = datasets.Features({name: datasets.Image() for name in rows})
    (tmp_path / "data").mkdir()
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(str(tmp_path / "data" / "train-00000-of-00001.parquet"))
    dataset = opened(f"hfds/{tmp_path}", classes=2)
    assert len(dataset) == 4
    assert dataset[1]["masks"].unique().tolist() == [1]
    for row, column in [(2, "annotation"), (3, "image")]:
        with pytest.raises(RequestError) as error:
            dataset[row]
        told = f"hfds/{tmp_path}, row {row}: has no {column}; leave the row out"
        assert str(error.value) == told
    with pytest.raises(RequestError, match="no split 'validation'; it has train"):
        opened(f"hfds/{tmp_path}", "validation", classes=2)


def test_other_is_no_class(ade):
    """ADE20K: 0 is what nobody named; 255 stays what does not count."""
    numbers = np.array([[0, 1, 2, 3, 255]])
    picture = Image.fromarray(numbers.astype(np.uint8))
    found = class_numbers(picture, "x", size=(1, 5), classes=3, ignore=255, reduce=True)
    assert found.tolist() == [[255, 0, 1, 2, 255]]
    mask(ade / "annotations/training/0.png", np.full((10, 12), 3))
    assert opened(ade, reduce_labels=True)[0]["masks"].unique().tolist() == [2]


def fails(work, *parts):
    with pytest.raises(RequestError) as error:
        work()
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_mask_is_named(ade):
    (ade / "annotations/training/1.png").unlink()
    fails(lambda: opened(ade), "images/training/1.jpg: has no mask", "annotations/training/1.png")


def test_a_mask_of_another_size_is_named(ade):
    mask(ade / "annotations/training/2.png", np.zeros((10, 11)))
    fails(lambda: opened(ade)[2], "annotations/training/2.png: is 11×10 px, and its image 12×10")


def test_a_label_outside_of_the_classes_is_named(ade):
    mask(ade / "annotations/training/0.png", np.full((10, 12), 7))
    fails(
        lambda: opened(ade)[0],
        "annotations/training/0.png: has the label 7, outside the 3 classes (0 to 2)",
        "reduce_labels",
    )
    fails(lambda: opened(ade, reduce_labels=True)[0], "has the label 7", "(1 to 3)")


def test_a_coloured_mask_is_named(ade):
    picture(ade / "annotations/training/0.png")
    fails(lambda: opened(ade)[0], "annotations/training/0.png: is a picture of mode RGB")


def test_a_broken_mask_and_a_broken_image_are_named(ade):
    (ade / "annotations/training/0.png").write_bytes(b"no picture")
    fails(lambda: opened(ade)[0], "annotations/training/0.png: not a readable mask")
    mask(ade / "annotations/training/0.png")
    (ade / "images/training/1.jpg").write_bytes(b"no picture")
    fails(lambda: opened(ade)[1], "images/training/1.jpg: not a readable image")


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "I"])
def test_masks_of_every_depth_are_numbers_not_colours(ade, mode):
    numbers = np.arange(120).reshape(10, 12) % 2
    file = ade / "annotations/training/0.png"
    if mode == "1":
        Image.fromarray(numbers.astype(bool)).save(file)
    elif mode == "I":
        file.unlink()
        Image.fromarray(numbers.astype(np.int32)).save(file.with_suffix(".tif"))
    else:
        mask(file, numbers, mode)
    assert torch.equal(opened(ade)[0]["masks"], torch.from_numpy(numbers))


def turned(file, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.open(file).save(file, exif=exif)


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("both", [True, False])
def test_image_and_mask_stay_together_whatever_the_camera_wrote(tmp_path, orientation, both):
    """Image and mask are one picture; the mask is drawn on the image as it is shown, or its file is
    turned by EXIF too."""
    numbers = np.kron(np.array([[0, 1, 1], [1, 0, 1]]), np.ones((8, 8), int))
    image, file = tmp_path / "images/a.png", tmp_path / "masks/a.png"
    mask(image, 200 * numbers)
    turned(image, orientation)
    mask(file, numbers if both else np.rot90(numbers, {3: 2, 6: 3, 8: 1}[orientation]))
    if both:
        turned(file, orientation)
    grey = ImageInput((1, 16, 24), (0.0,), (1.0,), interpolation="nearest")
    if orientation != 3:
        grey = ImageInput((1, 24, 16), (0.0,), (1.0,), interpolation="nearest")
    item = opened(tmp_path, inputs=grey, classes=2)[0]
    assert torch.equal(item["masks"], (item["inputs"][0] > 0.5).long())


def test_a_mask_of_the_picture_as_it_is_stored_keeps_it_so(tmp_path):
    numbers = np.kron(np.array([[0, 1, 1], [1, 0, 1]]), np.ones((8, 8), int))
    mask(tmp_path / "images/a.png", 200 * numbers)
    turned(tmp_path / "images/a.png", 6)
    mask(tmp_path / "masks/a.png", numbers)
    grey = ImageInput((1, 16, 24), (0.0,), (1.0,), interpolation="nearest")
    item = opened(tmp_path, inputs=grey, classes=2)[0]
    assert torch.equal(item["masks"], (item["inputs"][0] > 0.5).long())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("values", "args", "told"),
    [
        ((0, 255), {}, "only class 0 counts in its 3 masks, for their 255 stands for"),
        ((255, 255), {}, "no class counts in its 3 masks, for their 255 stands for"),
        ((0, 255), {"reduce_labels": True}, "no class counts"),
        ((0, 2), {"ignore_index": -1, "reduce_labels": True}, "their 0 .*task_args.reduce_labels"),
        ((1, 7), {"ignore_index": 7}, r"only class 1 .*7 .*\(task_args\.ignore_index\)"),
    ],
)
def test_masks_in_which_one_class_counts_are_refused(ade, values, args, told, training):
    for index in range(3):
        numbers = np.full((10, 12), values[0])
        numbers[3:6] = values[1]
        mask(ade / f"annotations/training/{index}.png", numbers)
    with pytest.raises(RequestError, match=told) as error:
        opened(ade, training=training, **args)
    assert "write that class's number" in str(error.value)
    mask(ade / "annotations/training/2.png")  # one mask with others is enough
    opened(ade, training=training, **args)


def test_empty_masks_alone_are_nothing_to_learn(ade):
    for index in range(3):
        mask(ade / f"annotations/training/{index}.png", np.zeros((10, 12)))
    fails(lambda: opened(ade, training=True), "only class 0 is in its 3 masks", "nothing to learn")
    assert opened(ade)[0]["masks"].unique().tolist() == [0]


def test_masks_by_other_names_are_offered(ade):
    file = ade / "annotations/training/1.png"
    file.rename(file.with_name("1_mask.png"))
    fails(lambda: opened(ade), "1.jpg: has no mask", "1_mask.png is it, give it that name")
    picture(file.with_suffix(".jpg"))
    fails(lambda: opened(ade), "1.jpg: has no mask", "its format changes numbers; save it as PNG")


def test_two_files_of_one_name_are_refused_and_masks_without_images_told_of(ade, capsys):
    mask(ade / "annotations/training/9.png")
    opened(ade)
    assert "1 masks have no image and are left out (9.png, …)" in capsys.readouterr().err
    picture(ade / "images/training/1.png")
    fails(lambda: opened(ade), "images/training/1.png: has the name of 1.jpg")
    (ade / "images/training/1.png").unlink()
    mask(ade / "annotations/training/1.tif")
    fails(lambda: opened(ade), "annotations/training/1.tif: has the name of 1.png")


def test_folders_of_masks_in_any_case_and_with_what_was_left_behind(ade):
    (ade / "images").rename(ade / "Images")
    (ade / "annotations").rename(ade / "Annotations")
    (ade / "Images/training").rename(ade / "Images/Training")
    for folder in (ade / "Images", ade / "Images/Training", ade / "Annotations", ade):
        picture(folder / ".ipynb_checkpoints" / "0-checkpoint.jpg")
        picture(folder / "__MACOSX" / "0.jpg")
        (folder / "._0.jpg").write_bytes(b"x")
    dataset = opened(ade)
    assert (len(dataset), dataset.split) == (3, "Training")
    assert len(opened(ade, "val")) == 2


def test_the_loader_tells_it_too(ade):
    mask(ade / "annotations/training/0.png", np.full((10, 12), 7))
    fails(lambda: list(loader(opened(ade), batch_size=2, workers=1)), "has the label 7")


def test_mistakes_of_the_folder(ade, tmp_path):
    fails(lambda: opened(tmp_path / "nowhere"), "nowhere: no such folder")
    (tmp_path / "bare").mkdir()
    fails(lambda: opened(tmp_path / "bare"), "is not laid out as images/SPLIT")
    picture(tmp_path / "half/images/a.png")
    fails(lambda: opened(tmp_path / "half", classes=3), "no folder of masks beside")
    fails(lambda: opened(ade, "test"), "no split 'test'; it has training, validation")
    (ade / "classes.txt").unlink()
    fails(lambda: opened(ade), "add a classes.txt", "task_args.classes")
    (ade / "classes.txt").write_text("\n")
    fails(lambda: opened(ade), "classes.txt: has no class names")
    (ade / "classes.txt").write_text("Ödland\n", encoding="latin-1")
    fails(lambda: opened(ade), "classes.txt: cannot be read as UTF-8 text")
    (ade / "classes.txt").write_text("ground\nsky\nsea\n", encoding="utf-8-sig")
    assert opened(ade).classes == ["ground", "sky", "sea"]


def test_mistakes_of_the_settings(ade):
    fails(lambda: opened(ade, classes=4), "classes.txt names 3 classes, and task_args.classes is 4")
    fails(lambda: opened(ade, ignore_index=2), "task_args.ignore_index: 2 is one of the 3 classes")
    fails(lambda: opened(ade, pool_scales=[0]), "pool_scales")
    fails(lambda: opened(ade, inputs=TextInput(None, 8)), "the model wants more than images")
    mixed = {"augment": Augment(mixup=0.2)}
    fails(lambda: opened(ade, data=mixed), "data.augment.mixup: segmentation has none; leave it")
    cropped = {"augment": Augment(scale=(0.5, 1.0))}
    fails(lambda: opened(ade, data=cropped), "augment.scale: segmentation has none; set task_args")


def test_without_labels_no_mask_is_read(ade, tmp_path):
    for file in (ade / "annotations").rglob("*.png"):
        file.unlink()
    dataset = opened(ade, unlabelled=True)
    assert (len(dataset), set(dataset[0]), dataset.labelled) == (3, {"inputs"}, False)
    picture(tmp_path / "plain" / "deep" / "a.jpg")  # any folder of images will do
    plain = opened(tmp_path / "plain", unlabelled=True)
    assert (len(plain), set(plain[0])) == (1, {"inputs"})
    random = opened(ade, unlabelled=True, training=True)
    assert random[0]["inputs"].shape == (3, 8, 8)


# Augmentation and batches ------------------------------------------------------------------------


@pytest.fixture
def marked(tmp_path):
    """Grey pictures in which a pixel's value tells its class: 80 · class + 20."""
    rng = np.random.default_rng(0)
    for index in range(4):
        blocks = np.kron(rng.integers(0, 3, (4, 5)), np.ones((6, 6))).astype(np.uint8)
        for folder in ("images", "annotations"):
            (tmp_path / folder / "train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(80 * blocks + 20).save(tmp_path / f"images/train/{index}.png")
        Image.fromarray(blocks).save(tmp_path / f"annotations/train/{index}.png")
    return tmp_path


def test_image_and_mask_move_together(marked):
    grey = ImageInput((1, 16, 16), (0.0,), (1.0,), interpolation="nearest")
    data = {"augment": Augment(vflip=0.5, color_jitter=0)}
    dataset = opened(marked, inputs=grey, training=True, data=data, classes=3, resize=[0.5, 2.0])
    seen, outside = set(), 0
    for draw in range(24):
        with seeded(draw):
            item = dataset[draw % 4]
        pixels, labels = item["inputs"][0], item["masks"]
        assert labels.shape == pixels.shape == (16, 16)
        counted = labels != 255
        assert torch.equal(labels[counted], ((255 * pixels[counted] - 20) / 80).round().long())
        outside += int((~counted).sum())
        seen.add(tuple(labels.flatten().tolist()))
    assert len(seen) == 24  # each draw another crop
    assert outside > 0  # small images are padded with what does not count


def test_the_seed_decides_the_crops(marked):
    dataset = opened(marked, training=True, classes=3)

    def epoch(seed, workers=0, number=0):
        batches = loader(dataset, batch_size=2, seed=seed, shuffle=True, workers=workers)
        batches.set_epoch(number)
        return torch.cat([batch["masks"] for batch in batches])

    assert torch.equal(epoch(0), epoch(0, workers=1))
    assert not torch.equal(epoch(0), epoch(1))
    assert not torch.equal(epoch(0), epoch(0, number=1))


def test_masks_of_several_sizes_make_a_batch(ade):
    picture(ade / "images/training/1.jpg", 6, 14)
    mask(ade / "annotations/training/1.png", np.ones((14, 6)))
    batch = next(iter(loader(opened(ade), batch_size=3)))
    assert batch["masks"].shape == (3, 14, 12)
    assert batch["sizes"].tolist() == [[10, 12], [14, 6], [10, 12]]
    assert (batch["masks"][1, :, 6:] == 255).all()
    assert (batch["masks"][0, 10:] == 255).all()


def test_a_split_can_be_opened_bare(ade):
    source, split, names = open_masks(str(ade), "val")
    assert (len(source), split, names) == (2, "validation", ["ground", "sky", "sea"])
