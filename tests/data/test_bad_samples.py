"""A sample that can't be read stops the step, or is passed over, named and counted."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from pelacli import console
from pelacli.data import bad_samples
from pelacli.data.dataset import open_dataset
from pelacli.data.held_out import divided
from pelacli.data.loader import loader
from pelacli.errors import RequestError
from pelacli.models.inputs import ImageInput
from pelacli.recipe.data import Augment
from pelacli.system import processes

GREY = ImageInput((1, 8, 8), (0.0,), (1.0,))


@pytest.fixture(autouse=True)
def _heard(monkeypatch):
    monkeypatch.setattr(console, "verbosity", console.Verbosity())


@pytest.fixture
def images(tmp_path):
    """Twelve grey images of two classes, each of another grey."""
    for number in range(12):
        folder = tmp_path / "train" / "ab"[number // 6]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 + 20 * number).save(folder / f"{number:02}.png")
    return tmp_path


def spoil(images, *numbers):
    for number in numbers:
        file = images / "train" / "ab"[number // 6] / f"{number:02}.png"
        file.write_bytes(file.read_bytes()[:40])


def opened(images, **options):
    return open_dataset(str(images), "train", inputs=GREY, **options)


def greys(batches):
    """The numbers of the images of each batch."""
    return [((batch["inputs"][:, 0, 0, 0] * 255 - 10) / 20).round().int().tolist()
            for batch in batches]  # fmt: skip


def test_a_bad_sample_stops_by_default_with_one_line_that_names_the_file(images):
    spoil(images, 4)
    for workers in (0, 2):
        with pytest.raises(RequestError) as error:
            list(loader(opened(images), batch_size=4, workers=workers))
        assert "train/a/04.png: not a readable image" in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_one_takes_the_place_of_a_bad_sample_whatever_the_workers(
    images, capsys, monkeypatch, workers
):
    monkeypatch.setattr("pelacli.system.devices.cores", lambda: 2)
    spoil(images, 4, 5, 11)
    loaded = loader(opened(images), batch_size=4, workers=workers, skips_bad=True)
    assert greys(loaded) == [[0, 1, 2, 3], [6, 6, 6, 7], [8, 9, 10, 0]]
    assert greys(loaded) == [[0, 1, 2, 3], [6, 6, 6, 7], [8, 9, 10, 0]]
    said = "".join(capsys.readouterr().err.split())
    for name in ("04.png", "05.png", "11.png"):
        assert said.count(name) == 1
    assert said.count("3of12samples") == 1  # not again for the second epoch


def test_what_can_be_read_is_as_it_was(images):
    options = {"batch_size": 4, "shuffle": True, "drop_last": True, "seed": 3,
               "augment": Augment(mixup=0.5), "num_classes": 2}  # fmt: skip
    data = opened(images, training=True, augment=options["augment"])
    plain, skipping = loader(data, **options), loader(data, **options, skips_bad=True)
    for one, other in zip(plain, skipping, strict=True):
        assert one.keys() == other.keys() == {"inputs", "labels"}
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_batch_that_is_mixed_stays_whole(images):
    spoil(images, *range(4))
    augment = Augment(mixup=0.5)
    data = opened(images, training=True, augment=augment)
    loaded = loader(data, batch_size=4, drop_last=True, augment=augment, num_classes=2,
                    skips_bad=True)  # fmt: skip
    batches = list(loaded)
    assert [len(batch["inputs"]) for batch in batches] == [4, 4, 4]
    assert len(loaded.passed_over.messages) == 4


def test_samples_that_are_held_out_pass_over_their_own(images):
    spoil(images, 1, 7)
    parts = divided(opened(images), opened(images), 0) or ()
    for part in parts:
        list(loader(part, batch_size=4, skips_bad=True))


def test_many_in_a_row_stop_the_step_all_the_same(images, monkeypatch):
    monkeypatch.setattr(bad_samples, "_MOST_IN_A_ROW", 3)
    spoil(images, 3, 4)
    list(loader(opened(images), batch_size=4, skips_bad=True))
    spoil(images, 5)
    with pytest.raises(RequestError, match=r"05.png: .*; 3 samples in a row can't be read"):
        list(loader(opened(images), batch_size=4, skips_bad=True))


def test_a_dataset_of_bad_samples_alone_is_refused(images):
    spoil(images, *range(12))
    with pytest.raises(RequestError, match="12 samples in a row"):
        list(loader(opened(images), batch_size=4, skips_bad=True))


def test_of_very_many_the_first_are_named_and_all_are_counted(images, monkeypatch, capsys):
    monkeypatch.setattr(bad_samples, "_MOST_NAMED", 2)
    spoil(images, 1, 3, 5, 7)
    list(loader(opened(images), batch_size=4, skips_bad=True))
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("passed over, as") == 2
    assert "4 of 12 samples; --verbose names them all" in said


def test_the_first_sample_is_the_first_that_can_be_read(images):
    spoil(images, 0)
    assert loader(opened(images), batch_size=4, skips_bad=True).first_sample()["labels"] == 0
    with pytest.raises(RequestError, match=r"00.png"):
        loader(opened(images), batch_size=4).first_sample()


def test_two_processes_together_take_the_batches_of_one(images, monkeypatch):
    spoil(images, 1, 4, 5)
    options = {"batch_size": 4, "shuffle": True, "drop_last": True, "seed": 2, "skips_bad": True}
    one = greys(loader(opened(images), **options))
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(processes, "rank_and_size", lambda rank=rank: (rank, 2))
        shares.append(greys(loader(opened(images), **options)))
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(row) for row in one]
