"""Work on a model's files says how far it is, whoever does it."""

from __future__ import annotations

import time

import pytest
import timm
import transformers
from safetensors.torch import save_file

import pelacli
from pelacli.artefact import loading
from pelacli.models import hub_progress
from pelacli.system import bytes_done


class Watcher:
    """Keeps each part with its total and what was done of it."""

    def __init__(self):
        self.parts = []

    def begin(self, part, total, unit):
        self.parts.append([part, total, 0])

    def advance(self, n):
        self.parts[-1][2] += n

    def reach(self, done, total):
        self.parts[-1][1:] = [total, done]

    def whole(self):
        """The parts of which everything was done, once each."""
        return {part: total for part, total, done in self.parts if total and done == total}


@pytest.fixture
def watcher():
    watcher = Watcher()
    with bytes_done.watched_by(watcher):
        yield watcher


def bert(folder):
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def size(folder):
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_opening_a_model_of_transformers(tmp_path, watcher):
    folder = bert(tmp_path / "bert")
    loading.open(str(folder))
    assert watcher.whole() == {"hashing": size(folder), "reading": pytest.approx(size(folder))}


def test_opening_a_file_of_timm(tmp_path, watcher):
    module = timm.create_model("test_vit")
    file = tmp_path / "vit.safetensors"
    save_file(module.state_dict(), file)
    loading.open(str(file), arch="test_vit")
    own = sum(p.nbytes for p in module.parameters())
    assert watcher.whole() == {"reading": own, "hashing": file.stat().st_size}


def test_opening_and_writing_an_artefact(artefact, tmp_path, watcher):
    opened = pelacli.load(artefact)
    parts = watcher.whole()
    assert parts["checking"] >= size(artefact)
    assert [part for part, *_ in watcher.parts] == ["checking", "", "reading", ""]
    watcher.parts.clear()
    pelacli.save(opened, tmp_path / "again")
    assert [part for part, *_ in watcher.parts] == ["writing", "", "hashing", ""]
    weights = sum(tensor.nbytes for tensor in opened.state_dict().values())
    assert watcher.parts[0][1] == weights
    assert watcher.whole()["hashing"] > weights


def test_fetching_counts_what_came_or_was_put_together_and_prints_nothing(watcher, capsys):
    bar = hub_progress.silent()
    came, together, files = (
        bar(desc="Downloading", total=0, unit="B", name="its own", disable=True),
        bar(desc="Reconstructing", total=0, unit="B", name="its own", disable=True),
        bar(range(3), desc="Fetching 3 files"),
    )
    with bytes_done.part("fetching", None):
        for each in (came, together):
            each.total += 100
        came.update(40)
        together.update(30)
        assert watcher.parts == [["fetching", 100, 40]]
        assert list(files) == [0, 1, 2]
        together.update(70)
        assert watcher.parts == [["fetching", 100, 100]]
    assert capsys.readouterr() == ("", "")


def test_what_a_library_does_in_one_call_is_looked_at(tmp_path, monkeypatch, watcher):
    monkeypatch.setattr(bytes_done, "_SECONDS", 0.001)
    with bytes_done.looked_at("writing", 3000, lambda: bytes_done.on_disk(tmp_path)):
        (tmp_path / "file").write_bytes(b"1" * 1000)
        deadline = time.monotonic() + 20
        while watcher.parts != [["writing", 3000, 1000]]:
            assert time.monotonic() < deadline
            time.sleep(0.001)


def test_a_file_that_is_long_before_it_is_full_counts_as_far_as_it_is_filled(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.truncate(50_000_000)
    assert bytes_done.on_disk(tmp_path) < 1_000_000
