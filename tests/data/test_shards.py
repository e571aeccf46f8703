"""WebDataset shards: images of any kind, and samples that can't be read."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import ExifTags, Image
from shard_files import encoded, write_info, write_split

from pelacli import console
from pelacli.data.dataset import open_dataset
from pelacli.data.loader import loader
from pelacli.errors import RequestError
from pelacli.models.inputs import ImageInput

pytest.importorskip("webdataset")
GREY = ImageInput((1, 8, 8), (0.0,), (1.0,))


def shards(root, samples, info=None):
    """One shard of samples, each {ending: bytes}."""
    write_info(root, write_split(root, "train", samples) | (info or {}))
    return open_dataset(f"wds/{root}", "train", inputs=GREY)


def batch(dataset):
    return next(iter(loader(dataset, batch_size=8)))


def test_images_of_every_ending_and_depth_are_read_upright(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    half = Image.fromarray(np.repeat([[0] * 8, [255] * 8], 4, 0).astype(np.uint8))
    found = batch(
        shards(
            tmp_path,
            [
                {"bmp": encoded(Image.new("L", (8, 8), 51), "BMP"), "cls": b"0"},
                {"jpeg": encoded(Image.new("L", (8, 8), 51), "JPEG"), "cls": b"1"},
                {"png": encoded(Image.new("I;16", (8, 8), 51 * 257)), "cls": b"2"},
                {"PNG": encoded(half, exif=exif), "cls": b"3"},
            ],
        )
    )
    assert found["labels"].tolist() == [0, 1, 2, 3]
    assert found["inputs"][:3].unique().tolist() == pytest.approx([0.2])
    assert found["inputs"][3, 0, :, 0].tolist() == pytest.approx([1] * 4 + [0] * 4)


def test_a_label_may_be_in_json(tmp_path):
    files = {"png": encoded(Image.new("L", (8, 8))), "json": b'{"kind": 3}'}
    assert batch(shards(tmp_path, [files], {"alt_label": "kind"}))["labels"].tolist() == [3]
    with pytest.raises(RequestError, match=r"0000: has no number 'sort' in its .json"):
        batch(shards(tmp_path, [files], {"alt_label": "sort"}))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"png": encoded(Image.new("L", (99, 99)))[:60], "cls": b"0"}, "not a readable image"),
        ({"png": b"", "cls": b"0"}, "it is empty"),
        ({"heic": b"x", "cls": b"0"}, "has no image among heic, cls"),
        ({"png": encoded(Image.new("L", (8, 8)))}, "has no class number in a .cls file"),
        ({"png": encoded(Image.new("L", (8, 8))), "cls": b"cat"}, "has no class number"),
    ],
)
def test_a_sample_that_cannot_be_read_is_refused_by_shard_and_key(tmp_path, files, told):
    good = {"png": encoded(Image.new("L", (8, 8))), "cls": b"1"}
    with pytest.raises(RequestError) as error:
        batch(shards(tmp_path, [good, files]))
    assert str(error.value).startswith(f"{tmp_path}/x-train-0.tar, 0001: ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_samples_may_be_passed_over_and_the_stream_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "verbosity", console.Verbosity())
    whole = [encoded(Image.new("L", (8, 8), 51 * number)) for number in range(6)]
    samples = [{"png": data, "cls": b"0"} for data in whole]
    samples[0] = {"png": whole[0][:40], "cls": b"0"}
    samples[3] = {"txt": b"no image", "cls": b"0"}
    samples[5] = {"png": whole[5], "cls": b"x"}
    loaded = loader(shards(tmp_path, samples), batch_size=2, skips_bad=True)
    greys = [(batch["inputs"][:, 0, 0, 0] * 5).round().int().tolist() for batch in loaded]
    assert greys == [[1, 1], [2, 4], [4, 4]]
    assert "3 of 6 samples" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("training", [False, True])
def test_a_shard_that_is_cut_off_is_told_and_never_silently_short(
    tmp_path, capsys, monkeypatch, training
):
    """webdataset leaves out what comes after the damage."""
    monkeypatch.setattr(console, "verbosity", console.Verbosity())
    files = {"png": encoded(Image.new("L", (8, 8), 51)), "cls": b"0"}
    shards(tmp_path, [files] * 4)
    tar = tmp_path / "x-train-0.tar"
    tar.write_bytes(tar.read_bytes()[:3000])  # in the middle of the second image
    data = open_dataset(f"wds/{tmp_path}", "train", inputs=GREY, training=training)
    with pytest.raises(RequestError, match=r"x-train-0.tar: can't be read to its end \(unexpected"):
        list(loader(data, batch_size=2, drop_last=training))
    assert list(loader(data, batch_size=2, drop_last=training, skips_bad=True))
    assert "can't be read to its end" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/etc/passwd", "no file of this directory"), ("../x-train-0.tar", "no file of this"),
        ("pipe:touch EXECUTED", "no file of this directory"), (3, "no file of this directory"),
        ("x-train-1.tar", "is not there"), ("pipe", "it is a pipe"),
    ],
)  # fmt: skip
def test_a_shard_is_a_file_of_its_directory(tmp_path, here, name, told):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RequestError, match=told):
        shards(tmp_path, [{"cls": b"0"}], {"filenames": [name]})
    assert not (here / "EXECUTED").exists()


def test_json_that_is_too_deep_is_a_bad_sample(tmp_path):
    files = {"png": encoded(Image.new("L", (8, 8))), "json": b"[" * 100_000}
    with pytest.raises(RequestError, match=r"0000: has no number 'kind' in its .json"):
        batch(shards(tmp_path, [files], {"alt_label": "kind"}))


def test_every_epoch_has_an_order_of_its_own(tmp_path):
    samples = [
        {"png": encoded(Image.new("L", (8, 8), 10 * n)), "cls": str(n).encode()} for n in range(8)
    ]
    shards(tmp_path, samples)
    data = open_dataset(f"wds/{tmp_path}", "train", inputs=GREY, training=True)
    loaded = loader(data, batch_size=8, shuffle=True)
    orders = []
    for epoch in (0, 1, 0):
        loaded.set_epoch(epoch)
        orders.append(next(iter(loaded))["labels"].tolist())
    assert orders[0] == orders[2] != orders[1]
