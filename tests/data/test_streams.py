"""What can only be read in turn is shared out over processes and workers, each sample once."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from shard_files import encoded, write_info, write_split

from pelacli.data import shard_rows, streams
from pelacli.data.dataset import open_dataset
from pelacli.data.loader import loader
from pelacli.errors import RequestError
from pelacli.models.inputs import ImageInput
from pelacli.recipe.data import Augment, Data
from pelacli.recipe.keys import dotted
from pelacli.recipe.step import NamedTask
from pelacli.steps.preflight import samples
from pelacli.steps.preflight.batches import sample_of
from pelacli.steps.preflight.problems import Problems
from pelacli.system import processes

pytest.importorskip("webdataset")
GREY = ImageInput((1, 1, 1), (0.0,), (1.0,))


def shards(root, *lengths):
    """A split of shards with so many samples, each of another grey, which is its label too."""
    greys = iter(range(sum(lengths)))
    whole = [
        [
            {"png": encoded(Image.new("L", (1, 1), grey)), "cls": str(grey).encode()}
            for grey in islice(greys, length)
        ]
        for length in lengths
    ]
    write_info(root, write_split(root, "train", *whole))
    return f"wds/{root}"


def batches(monkeypatch, spec, world, workers, *, epoch=0, **options):
    """The labels of each batch of each process, in the order in which its workers hand them over:
    [process][batch][sample]."""
    made = []
    for rank in range(world):
        monkeypatch.setattr(processes, "rank_and_size", lambda rank=rank: (rank, world))
        data = open_dataset(spec, "train", inputs=GREY, training=options.get("drop_last", False))
        loaded = loader(data, pinned=False, **options)
        loaded.set_epoch(epoch)
        of_workers = []
        for worker in range(workers):
            info = SimpleNamespace(id=worker, num_workers=workers)
            monkeypatch.setattr(streams, "get_worker_info", lambda info=info: info)
            of_workers.append([batch["labels"].tolist() for batch in loaded])
        longest = max(map(len, of_workers))
        made.append([own[n] for n in range(longest) for own in of_workers if n < len(own)])
    return made


def times_seen(made):
    return Counter(np.concatenate([np.concatenate(own) for own in made]).tolist())


@pytest.mark.parametrize(
    ("lengths", "world", "workers"),
    [
        ((6, 5), 2, 2),  # fewer shards than readers
        ((11,), 2, 1),
        ((3,), 2, 3),  # fewer samples than readers
        ((2, 0, 5), 3, 2),
        ((6, 5), 1, 3),
        ((4, 3, 2, 1), 2, 2),  # a shard each
    ],
)
def test_an_evaluation_counts_every_sample_once_whatever_the_shards(
    monkeypatch, tmp_path, lengths, world, workers
):
    spec = shards(tmp_path, *lengths)
    made = batches(monkeypatch, spec, world, workers, batch_size=4)
    assert times_seen(made) == Counter(range(sum(lengths)))
    assert all(own for own in made)  # who has none would not meet the others


@pytest.mark.parametrize(
    ("lengths", "world", "workers"),
    [
        ((13, 12), 2, 2),
        ((25,), 4, 1),
        ((25,), 2, 4),
        ((13, 12), 1, 3),
        ((22, 0, 1, 2), 2, 2),  # a shard each, of which some are too short
        ((2, 1, 12, 3, 3, 1, 2, 1), 1, 4),
        ((10, 1, 13, 1), 2, 1),
    ],
)
def test_training_takes_every_sample_at_most_once_and_processes_as_many_batches(
    monkeypatch, tmp_path, lengths, world, workers
):
    spec = shards(tmp_path, *lengths)
    how = {"batch_size": 8, "drop_last": True, "shuffle": True}
    epochs = [batches(monkeypatch, spec, world, workers, epoch=e, **how) for e in (0, 1, 0)]
    for made in epochs:
        assert [[len(batch) for batch in own] for own in made] == [[8 // world] * 3] * world
        assert set(times_seen(made).values()) == {1}
    assert epochs[0] == epochs[2] != epochs[1]
    # The one that is left out is another one.
    assert times_seen(epochs[0]).keys() != times_seen(epochs[1]).keys()


@pytest.mark.parametrize("said", [None, [9, 1], "none", [9, 1, 1, "5"], [16, 0, 0, 0]])
def test_with_shards_of_their_own_processes_make_as_many_batches_all_the_same(
    monkeypatch, tmp_path, said
):
    """Also where the lengths of the shards are not what they are said to be."""
    spec = shards(tmp_path, 9, 1, 1, 5)
    if said is not None:
        info = json.loads((tmp_path / "_info.json").read_text())
        info["splits"]["train"]["shard_lengths"] = said
        (tmp_path / "_info.json").write_text(json.dumps(info))
    made = batches(monkeypatch, spec, 2, 2, batch_size=4, drop_last=True, shuffle=True)
    assert [[len(batch) for batch in own] for own in made] == [[2] * 4] * 2
    assert said is not None or set(times_seen(made).values()) == {1}


@pytest.mark.parametrize(
    ("lengths", "takes", "parts"),
    [
        ((4, 4, 4, 4), (8, 8), None),
        ((9, 8, 1, 1), (9, 9), None),  # whole: ten, nine
        ((9, 8, 2, 1), (10, 10), [{0: (0, 9), 1: (0, 1)}, {1: (1, 8), 2: (0, 2), 3: (0, 1)}]),
        ((1, 6, 1, 6), (6, 6), [{0: (0, 1), 1: (0, 5)}, {1: (5, 6), 2: (0, 1), 3: (0, 4)}]),
    ],
)
def test_shards_are_dealt_out_whole_unless_some_reader_would_get_too_few(lengths, takes, parts):
    paths = [str(n) for n in range(len(lengths))]
    rows = [shard_rows.row(paths, dict(zip(paths, lengths, strict=True)), takes, n) for n in (0, 1)]
    if parts is None:
        assert rows == [None, None]
    else:
        wanted = [{str(n): range(*part) for n, part in one.items()} for one in parts]
        assert [row.parts for row in rows] == wanted


@pytest.mark.parametrize(("cut", "teller"), [(2, 0), (12, 1)])
def test_damage_to_a_shard_of_two_readers_is_told_by_one(monkeypatch, tmp_path, cut, teller):
    """Each has a part of the first shard."""
    spec = shards(tmp_path, 15, 1)
    tar = tmp_path / "x-train-0.tar"
    tar.write_bytes(tar.read_bytes()[: cut * 4 * 512 + 700])  # a sample is four blocks of 512
    source = open_dataset(spec, "train", inputs=GREY, training=True).source
    told = []
    for rank in (0, 1):
        share = streams.Share(streams.Reader(rank, 2), takes=(8, 8))
        found = [image for image, _ in source.samples(share)]
        told += [rank for image in found if "to its end" in str(image)]
    assert told == [teller]


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (2, 2)])
def test_a_limit_holds_in_a_stream(monkeypatch, tmp_path, world, workers):
    spec = shards(tmp_path, 6, 5, 6, 5)
    made = batches(monkeypatch, spec, world, workers, batch_size=4, limit=7)
    assert times_seen(made) == Counter(range(7))


def test_what_can_not_be_shared_out_is_refused_before_anything_is_read(monkeypatch, tmp_path):
    data = open_dataset(shards(tmp_path, 3, 2), "train", inputs=GREY)
    monkeypatch.setattr(processes, "rank_and_size", lambda: (1, 8))
    for how in ({}, {"drop_last": True}):
        with pytest.raises(RequestError, match=rf"{data.spec}: 5 samples .*for 8 processes; each"):
            loader(data, batch_size=8, **how)
    monkeypatch.setattr(processes, "rank_and_size", lambda: (1, 2))
    assert loader(data, batch_size=8, drop_last=True).batch_size == 4
    with pytest.raises(RequestError, match="batch_size 3 does not divide by 2 processes"):
        loader(data, batch_size=3, drop_last=True)
    mixed = {"drop_last": True, "augment": Augment(mixup=1.0), "num_classes": 5}
    assert loader(data, batch_size=8, **mixed).batch_size == 4
    with pytest.raises(RequestError, match="batch_size 2 does not divide by 4, two a process"):
        loader(data, batch_size=2, **mixed)


def test_shards_that_hold_fewer_samples_than_they_say_end_in_a_line(monkeypatch, tmp_path):
    spec = shards(tmp_path, 4)
    info = tmp_path / "_info.json"
    info.write_text(info.read_text().replace('"num_samples": 4', '"num_samples": 400'))
    with pytest.raises(RequestError, match=r"found no sample, and 400 are said .*num_samples and"):
        batches(monkeypatch, spec, 2, 30, batch_size=2, drop_last=True)


def test_a_stream_is_not_begun_by_the_look_before_the_work(tmp_path, monkeypatch):
    spec = shards(tmp_path, 3)
    data = Data(dataset=spec)
    problems = Problems(dotted)
    look = partial(samples.look, problems, SimpleNamespace(inputs=GREY), data, "train",
                   NamedTask("image-classification", {}), ("data",), ("data", "train"))  # fmt: skip
    look(4, training=True)
    assert not len(problems)
    assert sample_of(loader(open_dataset(spec, "train", inputs=GREY), batch_size=2)) is None
    monkeypatch.setattr(processes, "rank_and_size", lambda: (1, 4))
    look(4, training=True)
    with pytest.raises(RequestError, match="3 samples for 4 processes"):
        problems.refuse()
