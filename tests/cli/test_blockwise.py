"""``pela decompose --blockwise``: the same model, and what a killed run leaves."""

from __future__ import annotations

import contextlib
import re

import pytest
import torch
from generated_text import counted, save_model, write
from safetensors.torch import load_file

from pelacli.errors import RequestError
from pelacli.factorize import blockwise as walk
from pelacli.steps import blockwise

RATIO = ["--ratio", 0.8]


@pytest.fixture
def llama(here):
    save_model("llama", "CausalLM", here / "llama", num_hidden_layers=3)
    write(here / "texts.jsonl", [{"text": text} for text, _ in counted(64, 1)])
    return ["decompose", "llama", "--calibrate", "texts.jsonl", "--samples", 48, *RATIO]


def weights(folder):
    return load_file(folder / "model.safetensors")


def close(ours, theirs):
    """The same layers of the same ranks, and the same products of their factors."""
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    for name in ours:
        if name.endswith(".down.weight"):
            up = name.replace(".down.", ".up.")
            product, expected = ours[up] @ ours[name], theirs[up] @ theirs[name]
            assert float((product - expected).norm()) <= 5e-3 * float(expected.norm()), name


def test_block_by_block_the_artefact_is_that_of_the_whole_model(pela, here, llama):
    whole = pela(*llama, "--no-blockwise", "-o", "whole", "--json")
    parts = pela(*llama, "--blockwise", "-o", "parts", "--json")
    assert whole[0] == parts[0] == 0, parts[2]
    close(weights(here / "parts"), weights(here / "whole"))
    assert not list(here.glob("*.factorising"))


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


@pytest.mark.parametrize("after", [4, 8, 13])
def test_a_killed_run_goes_on_to_the_same_weights(pela, here, llama, monkeypatch, after):
    pela(*llama, "--blockwise", "-o", "whole")
    put, runs = blockwise.Shelf.put, []

    def counted_put(self, name, value):
        if re.match(r"section-|damage-\d|.*-factors-", name):
            runs.append(name)
            if len(runs) == after:
                raise Killed
        put(self, name, value)

    with monkeypatch.context() as patch:
        patch.setattr(blockwise.Shelf, "put", counted_put)
        with pytest.raises(Killed):
            pela(*llama, "--blockwise", "-o", "parts")
    assert not (here / "parts").exists()
    assert (here / "parts.factorising").is_dir()
    solved = []
    section = walk._section
    monkeypatch.setattr(walk, "_section", lambda s, i, *a: solved.append(i) or section(s, i, *a))
    code, _, err = pela(*llama, "--blockwise", "-o", "parts", "--verbose")
    assert code == 0
    assert "going on with what a run before has left" in err
    # Five sections are calibrated, and their cuts measured, before the first is corrected.
    assert len(solved) == max(0, 10 - (after - 1))
    ours, theirs = weights(here / "parts"), weights(here / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not (here / "parts.factorising").exists()


@pytest.mark.parametrize("change", ["texts", "weights"])
def test_a_changed_request_starts_anew(pela, here, llama, monkeypatch, change):
    def killed(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(walk, "_section", killed)
        with pytest.raises(Killed):
            pela(*llama, "--blockwise", "-o", "parts")
    if change == "texts":
        write(here / "texts.jsonl", [{"text": text} for text, _ in counted(64, 2)])
    if change == "weights":
        save_model("llama", "CausalLM", here / "llama", num_hidden_layers=3, initializer_range=0.2)
    code, _, err = pela(*llama, "--blockwise", "-o", "parts", "--verbose")
    assert code == 0
    assert "going on" not in err


def test_what_a_run_before_has_left_stays_where_memory_is_short_for_a_while(
    pela, here, llama, monkeypatch
):
    def refused(*args):
        raise RequestError("calibration needs more memory than is free")

    def killed(*args):
        raise Killed

    for instead in (killed, refused):
        with monkeypatch.context() as patch:
            patch.setattr(walk, "_section", instead)
            with contextlib.suppress(Killed):
                assert pela(*llama, "--blockwise", "-o", "parts")[0] == 2
        assert (here / "parts.factorising" / "request.json").is_file()


def test_a_refused_request_leaves_nothing_beside_the_output(pela, here, llama):
    code, _, _ = pela(*llama[:-1], 0.0001, "--blockwise", "-o", "parts")
    assert code == 2
    assert not list(here.glob("parts*"))


def test_a_folder_of_the_user_in_its_place_is_left_alone(pela, here, llama):
    (here / "parts.factorising").mkdir()
    (here / "parts.factorising" / "mine.txt").write_text("mine")
    code, _, err = pela(*llama, "--blockwise", "-o", "parts")
    assert code == 2
    assert "parts.factorising: is in the way" in err
    assert (here / "parts.factorising" / "mine.txt").read_text() == "mine"


def test_it_is_chosen_where_memory_is_short(pela, here, llama, monkeypatch):
    monkeypatch.setattr(blockwise, "_SHARE", 0.0)
    code, _, err = pela(*llama, "-o", "parts")
    assert code == 0
    assert "memory is short: calibrating block by block" in err


def test_it_is_not_chosen_where_there_is_memory(pela, here, llama):
    assert "block by block" not in pela(*llama, "-o", "whole")[2]
