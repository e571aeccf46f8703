"""Datasets and the loader: what is read, in which order, with which random numbers."""

import json
import pickle
import random
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from pelacli.data.dataset import open_dataset
from pelacli.data.loader import loader
from pelacli.data.order import _share
from pelacli.data.seeding import seeded
from pelacli.errors import PelaError, RequestError
from pelacli.models.inputs import ImageInput, TextInput
from pelacli.recipe.data import Augment, Data
from pelacli.tasks import base, registry

INPUTS = ImageInput((3, 8, 8), (0.5,) * 3, (0.5,) * 3)
GREY = ImageInput((1, 8, 8), (0.5,) * 3, (0.5,) * 3)


def augment(**changed):
    return Augment(**({"scale": (0.5, 1.0), "reprob": 0.25} | changed))


class Words:
    """The little of a transformers tokenizer that is used: a word is its length."""

    pad_token, eos_token = None, "."

    def __call__(self, texts, *, max_length, **options):
        rows = [[len(word) for word in text.split()][:max_length] for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


TEXT = TextInput(Words(), max_length=4)


@pytest.fixture
def images(tmp_path):
    """train/ with classes 2 and 10 (3 images each), val/ with class 10 only."""
    colours = iter(range(10, 250, 20))
    for folder in ("train/2", "train/10", "val/10"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (12, 10), (next(colours), 0, 0)).save(tmp_path / folder / f"{i}.png")
    return tmp_path


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in ("inputs", "labels"))


# What is read


def test_digits_are_split_by_class_once_and_for_all():
    train, val = (open_dataset("digits", s, inputs=GREY) for s in ("train", "val"))
    assert (len(train), len(val), val.num_classes) == (1437, 360, 10)
    counts = np.bincount([val[i]["labels"] for i in range(len(val))])
    assert counts.min() >= 34
    assert counts.max() <= 37
    pixels = {train[i]["inputs"].numpy().tobytes() for i in range(len(train))}
    assert sum(val[i]["inputs"].numpy().tobytes() in pixels for i in range(len(val))) == 0
    image = val[0]["inputs"]
    assert image.shape == (1, 8, 8)
    assert (image.min(), image.max()) == (-1.0, 1.0)  # 0…16 becomes 0…255, normalised by 0.5, 0.5


def test_size_and_channels_are_the_models():
    dataset = open_dataset("digits", "train", inputs=INPUTS, image_size=12)
    assert dataset[0]["inputs"].shape == (3, 12, 12)
    four = ImageInput((4, 8, 8), (0.5,) * 4, (0.5,) * 4)
    with pytest.raises(RequestError, match="4 channels"):
        open_dataset("digits", "train", inputs=four)


def test_folder_classes_are_those_of_the_training_split(images):
    train = open_dataset(str(images), "train", inputs=INPUTS)
    val = open_dataset(str(images), "validation", inputs=INPUTS)
    assert train.classes == val.classes == ["2", "10"]  # in timm's order of numbers
    assert [train[i]["labels"] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [val[i]["labels"] for i in range(3)] == [1, 1, 1]
    assert (train.split, val.split) == ("train", "val")
    red = train[0]["inputs"][0, 0, 0].item()
    assert red == pytest.approx((10 / 255 - 0.5) / 0.5, abs=1e-6)


def test_folder_without_splits_says_so(images):
    flat = open_dataset(str(images / "train"), "validation", inputs=INPUTS)
    assert flat.split is None
    assert len(flat) == 6


def test_unlabelled_folder_is_read_at_any_depth(images):
    (images / "loose").mkdir()
    Image.new("L", (5, 5)).save(images / "loose" / "a.jpg")
    deep = open_dataset(str(images / "loose"), "train", inputs=INPUTS, unlabelled=True)
    assert set(deep[0]) == {"inputs"}
    assert deep.num_classes is None
    assert len(open_dataset(str(images), "train", inputs=INPUTS, unlabelled=True)) == 6
    batch = next(iter(loader(deep, batch_size=4)))
    assert set(batch) == {"inputs"}


def test_text_files(tmp_path):
    (tmp_path / "a.txt").write_text("one two three\n\n  \nfour\n")
    (tmp_path / "b.jsonl").write_text('{"text": "é x", "label": "no"}\n{"text": "y", "label": "a"}')
    (tmp_path / "c.csv").write_text('text,label\n"a, b",3\nc,0\n')
    plain = open_dataset(str(tmp_path / "a.txt"), "train", inputs=TEXT)
    batch = next(iter(loader(plain, batch_size=2)))
    assert batch["inputs"]["input_ids"].tolist() == [[3, 3, 5], [4, 0, 0]]
    assert batch["inputs"]["attention_mask"].sum() == 4
    assert "labels" not in batch
    named = open_dataset(str(tmp_path / "b.jsonl"), "train", inputs=TEXT)
    assert named.classes == ["a", "no"]
    assert named[0] == {"inputs": "é x", "labels": 1}
    assert open_dataset(str(tmp_path / "c.csv"), "x", inputs=TEXT)[0] == {
        "inputs": "a, b", "labels": 3,
    }  # fmt: skip
    (tmp_path / "b.jsonl").rename(tmp_path / "train.jsonl")
    assert open_dataset(str(tmp_path), "train", inputs=TEXT).split == "train"


def test_huggingface_dataset_from_a_folder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    rows = {"picture": [Image.new("RGB", (9, 9), (50 * i, 0, 0)) for i in range(3)]}
    rows["kind"] = [2, 0, 1]
    features = datasets.Features(
        picture=datasets.Image(), kind=datasets.ClassLabel(names=["x", "y", "z"])
    )
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(tmp_path / "data" / "train.parquet")
    dataset = open_dataset(f"hfds/{tmp_path / 'data'}", "train", inputs=INPUTS)
    assert dataset.classes == ["x", "y", "z"]
    assert [dataset[i]["labels"] for i in range(3)] == [2, 0, 1]
    assert dataset[2]["inputs"][0, 0, 0].item() == pytest.approx(100 / 127.5 - 1, abs=1e-6)
    with pytest.raises(RequestError, match=r"no split 'val'; it has train"):
        open_dataset(f"hfds/{tmp_path / 'data'}", "val", inputs=INPUTS)


def test_hub_rows_without_an_image_or_a_class_number_are_named(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    picture = Image.new("RGB", (9, 9))
    for name, images, labels, told in [
        ("words", [picture] * 2, ["cat", "dog"], "row 0: label 'cat' is no class number"),
        ("holes", [picture] * 2, [1, None], "row 1: has no label"),
        ("blind", [picture, None], [1, 0], "row 1: has no picture"),
    ]:
        (tmp_path / name).mkdir()
        kind = "string" if name == "words" else "int64"
        features = datasets.Features(picture=datasets.Image(), label=datasets.Value(kind))
        made = datasets.Dataset.from_dict({"picture": images, "label": labels}, features=features)
        made.to_parquet(tmp_path / name / "train.parquet")
        spec = f"hfds/{tmp_path / name}"
        dataset = open_dataset(spec, "train", inputs=INPUTS)
        with pytest.raises(RequestError) as error:
            list(loader(dataset, batch_size=2))
        assert str(error.value).startswith(f"{spec}, {told}")
        if name != "blind":  # nobody asks for labels where they are not wanted
            bare = open_dataset(spec, "train", inputs=INPUTS, unlabelled=True)
            assert set(next(iter(loader(bare, batch_size=2)))) == {"inputs"}


# Which batches


def batches(workers=0, epoch=1, start=0, seed=5, **changed):
    settings = augment(mixup=0.8, cutmix=1.0, smoothing=0.1) if not changed else augment(**changed)
    dataset = open_dataset("digits", "train", inputs=INPUTS, training=True, augment=settings)
    made = loader(
        dataset, batch_size=32, seed=seed, shuffle=True, drop_last=True, workers=workers,
        num_classes=10, augment=settings, limit=128,
    )  # fmt: skip
    made.set_epoch(epoch, start)
    return list(made)


def test_batches_depend_on_seed_and_epoch_only():
    one = batches()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # the surroundings do not matter
    for other in (batches(), batches(workers=2)):
        assert len(one) == len(other) == 4
        assert all(same(a, b) for a, b in zip(one, other, strict=True))
    assert not same(one[0], batches(seed=6)[0])
    assert not same(one[0], batches(epoch=2)[0])


def test_an_epoch_can_begin_in_its_middle():
    assert all(same(a, b) for a, b in zip(batches()[3:], batches(start=3, workers=1), strict=True))


def test_nothing_is_loaded_that_was_skipped():
    dataset = open_dataset("digits", "train", inputs=GREY)
    asked = []
    read = dataset.source

    class Counting:
        def __len__(self):
            return len(read)

        def __getitem__(self, index):
            asked.append(index)
            return read[index]

    dataset.source = Counting()
    made = loader(dataset, batch_size=100)
    made.set_epoch(0, 14)
    assert [len(b["labels"]) for b in made] == [37]
    assert asked == list(range(1400, 1437))


def test_augmented_epochs_differ_and_each_image_comes_once():
    plain = {"scale": (0.3, 1.0), "mixup": 0.0}
    first, second = batches(epoch=0, **plain), batches(epoch=1, **plain)
    labels = [sorted(torch.cat([b["labels"] for b in epoch]).tolist()) for epoch in (first, second)]
    assert first[0]["inputs"].unique(dim=0).shape[0] == 32
    assert len(labels[0]) == 128
    dataset = open_dataset("digits", "train", inputs=GREY)
    made = loader(dataset, batch_size=64, shuffle=True, seed=3)
    seen = sorted(index for _, _, keys in made.order for index, _ in keys)
    assert seen == list(range(1437))


def test_every_sample_and_every_batch_draws_its_own_random_numbers():
    settings = augment(color_jitter=None, reprob=1.0)
    dataset = open_dataset("digits", "train", inputs=INPUTS, training=True, augment=settings)
    same_image = dataset.source[0]
    dataset.source = [same_image] * 16
    made = loader(dataset, batch_size=16, seed=1)
    epochs = []
    for epoch in range(2):
        made.set_epoch(epoch)
        epochs += [next(iter(made))["inputs"]]
    assert torch.cat(epochs).unique(dim=0).shape[0] == 32
    both = batches(epoch=0) + batches(epoch=1)
    mixed = [batch["labels"].max(1).values.min().item() for batch in both]
    assert len(set(mixed)) >= 5  # the share that is left of an image; cutmix has few
    assert mixed[:4] != mixed[4:]


def test_mixup_gives_soft_labels_and_smoothing_alone_leaves_images_unmixed():
    mixed = batches()[0]
    assert mixed["labels"].shape == (32, 10)
    torch.testing.assert_close(mixed["labels"].sum(1), torch.ones(32))
    smooth, hard = batches(smoothing=0.1)[0], batches(smoothing=0.0)[0]
    assert torch.equal(smooth["inputs"], hard["inputs"])
    expected = torch.full((32, 10), 0.01).scatter(1, hard["labels"][:, None], 0.91)
    torch.testing.assert_close(smooth["labels"], expected)


def test_repeated_augmentation_shows_each_image_several_times_and_never_alike():
    batch = batches(repeats=4)[0]
    runs = batch["labels"].reshape(8, 4)
    assert torch.equal(runs, runs[:, :1].expand(8, 4))
    images = batch["inputs"].reshape(8, 4, -1)
    assert (images[:, 0] != images[:, 1]).any(1).sum() >= 6


def test_evaluation_sees_every_sample_once_in_order():
    dataset = open_dataset("digits", "val", inputs=GREY)
    labels = torch.cat([b["labels"] for b in loader(dataset, batch_size=64, workers=2)])
    assert labels.tolist() == [dataset[i]["labels"] for i in range(360)]


def test_shares_of_processes_keep_mixup_partners_together_and_add_nothing():
    batch = list(range(16))
    parts = [_share(batch, rank, 4, True) for rank in range(4)]
    assert sorted(chain(*parts)) == batch
    for part in parts:
        assert [a + b for a, b in zip(part, part[::-1], strict=True)] == [15] * 4
    uneven = [_share(list(range(7)), rank, 4, False) for rank in range(4)]
    assert sorted(chain(*uneven)) == list(range(7))


def test_seeded_restores_what_was_there():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    with seeded(1, 2):
        inside = draw()
    assert draw() == expected
    with seeded(1, 2):
        assert draw() == inside
    with seeded(2, 1):
        assert draw() != inside


def test_datasets_reach_workers_of_any_start_method(images):
    dataset = open_dataset(
        str(images), "train", inputs=INPUTS, training=True, augment=augment(auto_augment="rand-m9")
    )
    again = pickle.loads(pickle.dumps(dataset))
    with seeded(1):
        first = dataset[4]["inputs"]
    with seeded(1):
        assert torch.equal(again[4]["inputs"], first)


# Errors: one line that names the thing


@pytest.mark.parametrize(
    ("spec", "split", "told"),
    [
        ("digts", "train", "did you mean 'digits'"),
        ("digits", "test", "no split 'test'; it has train, validation"),
        ("nowhere/at/all", "train", "nowhere/at/all: no such folder"),
        ("torch/nosuch", "train", "torch/nosuch, split 'train': cannot be opened"),
        ("wds/nowhere", "train", "wds/nowhere(, split 'train': cannot be opened|: needs another)"),
    ],
)
def test_unknown_datasets(spec, split, told, tmp_path, monkeypatch):
    monkeypatch.setenv("PELA_DATA", str(tmp_path))
    with pytest.raises(RequestError, match=told):
        open_dataset(spec, split, inputs=INPUTS)


def test_folder_errors(images):
    with pytest.raises(RequestError, match=r"no split 'test'; it has train, val"):
        open_dataset(str(images), "test", inputs=INPUTS)
    with pytest.raises(RequestError, match="outside of any class folder"):
        open_dataset(str(images / "train" / "2"), "train", inputs=INPUTS)
    (images / "empty").mkdir()
    for unlabelled in (False, True):
        with pytest.raises(RequestError, match=r"empty: no .*images in it"):
            open_dataset(str(images / "empty"), "train", inputs=INPUTS, unlabelled=unlabelled)
    (images / "val" / "11").mkdir()
    Image.new("RGB", (4, 4)).save(images / "val" / "11" / "a.png")
    with pytest.raises(RequestError, match=r"val/11: the training split has no such class"):
        open_dataset(str(images), "val", inputs=INPUTS)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(images, workers):
    file = images / "train" / "10" / "1.png"
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:400])
    dataset = open_dataset(str(images), "train", inputs=INPUTS)
    with pytest.raises(RequestError) as told:
        list(loader(dataset, batch_size=2, workers=workers))
    assert str(told.value).startswith(f"{file}: not a readable image")
    assert "Traceback" not in str(told.value)
    assert "\n" not in str(told.value)


def test_text_errors(tmp_path):
    for name, content, told in [
        ("a.txt", "\n \n", "no sentences"),
        ("b.jsonl", '{"text": "x"}\n{oops', "line 2: not JSON"),
        ("c.csv", "words\nhello\n", "no field 'text'.*it has words"),
        ("f.jsonl", '{"text": "x"}\n{"label": 1}', "line 2: no field 'text'"),
        ("d.md", "x", "read from .txt"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(RequestError, match=told):
            open_dataset(str(tmp_path / name), "train", inputs=TEXT)
    (tmp_path / "e.txt").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(RequestError, match="UTF-8"):
        open_dataset(str(tmp_path / "e.txt"), "train", inputs=TEXT)
    with pytest.raises(RequestError, match="is a file"):
        open_dataset(str(tmp_path / "a.txt"), "train", inputs=INPUTS)
    with pytest.raises(RequestError, match="tokenizer"):
        open_dataset("a.txt", "train", inputs=TextInput(None, max_length=3))


def test_labels_and_batches_must_fit_the_model(tmp_path):
    digits = open_dataset("digits", "train", inputs=INPUTS)
    with pytest.raises(RequestError, match=r"10 classes, but the model has 5 .*num_classes = 10"):
        loader(digits, batch_size=4, num_classes=5)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "label": 7}))
    text = open_dataset(str(tmp_path / "a.jsonl"), "train", inputs=TEXT)
    with pytest.raises(RequestError, match=r"8 classes, but the model has 3 .*num_classes = 8"):
        loader(text, batch_size=4, num_classes=3)
    text.classes = None
    with pytest.raises(RequestError, match="label 7 is outside the model's 3 classes"):
        next(iter(loader(text, batch_size=4, num_classes=3)))
    with pytest.raises(RequestError, match="batch_size 33 is odd"):
        loader(digits, batch_size=33, augment=augment(mixup=1.0), num_classes=10)
    with pytest.raises(RequestError, match="need images"):
        next(iter(loader(text, batch_size=2, augment=augment(mixup=1.0), num_classes=8)))
    with pytest.raises(RequestError, match="timm refuses"):
        open_dataset(
            "digits", "train", inputs=INPUTS, training=True, augment=augment(auto_augment="nope")
        )


def test_a_dataset_smaller_than_a_batch_makes_one(images):
    dataset = open_dataset(str(images), "train", inputs=INPUTS)
    made = loader(dataset, batch_size=64, drop_last=True)
    assert [len(b["labels"]) for b in made] == [6]


# Tasks


def test_tasks_are_found_by_name():
    with pytest.raises(RequestError, match="did you mean 'image-classification'"):
        registry.get("image_clasification")
    for name in registry.names():
        task = registry.get(name)
        assert (task.MAIN is None) == (not task.LABELLED)
    with pytest.raises(PelaError, match="name a task"):
        registry.get("unlabelled").loss(torch.zeros(1), {})


def test_evaluation_counts_as_by_hand():
    task = registry.get("image-classification")
    data = Data(dataset="digits")
    dataset = task.open(data, "validation", inputs=GREY)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 10))
    module.train()
    found = base.evaluate(module, loader(dataset, batch_size=77, num_classes=10), task)
    assert module.training
    x = torch.stack([dataset[i]["inputs"] for i in range(360)]).flatten(1)
    y = torch.tensor([dataset[i]["labels"] for i in range(360)])
    scores = module[2](x).detach()
    top = scores.argsort(1, descending=True)
    assert found["accuracy"] == pytest.approx(100 * (top[:, 0] == y).float().mean().item())
    assert found["top5"] == pytest.approx(
        100 * (top[:, :5] == y[:, None]).any(1).float().mean().item()
    )
    log_probabilities = scores.double() - scores.double().exp().sum(1, keepdim=True).log()
    by_hand = -log_probabilities[torch.arange(360), y].mean().item()
    assert found["loss"] == pytest.approx(by_hand, rel=1e-5)


def test_classification_loss_takes_hard_and_soft_labels():
    task = registry.get("image-classification")
    scores = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    soft = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    by_hand = -(soft * (scores - scores.exp().sum(1, keepdim=True).log())).sum(1).mean()
    assert task.loss(scores, {"labels": soft}).item() == pytest.approx(by_hand.item())
    hard = task.loss(scores, {"labels": torch.tensor([0, 1])})
    assert hard.item() == pytest.approx((np.log1p(np.exp(-2)) + np.log1p(np.exp(-1))) / 2)
    with pytest.raises(RequestError, match="no labels"):
        task.loss(scores, {})
