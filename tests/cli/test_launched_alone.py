"""Commands that one process does, where a launcher has started several."""

from __future__ import annotations

import pytest

ALONE = (
    ("report", "a", "--html", "page.html"),
    ("verify", "a"),
    ("export", "a", "--to", "dense", "-o", "dense"),
    ("import", "nothing.safetensors", "--model", "a", "-o", "b"),
    ("push", "a", "me/small"),
    ("recipes", "copy", "quickstart"),
)


@pytest.mark.parametrize("words", ALONE, ids=lambda words: words[0])
def test_the_others_end_at_once_and_write_nothing(pela, artefact, monkeypatch, words):
    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    before = sorted(artefact.parent.rglob("*"))
    assert pela(*words) == (0, "", "")
    assert sorted(artefact.parent.rglob("*")) == before


def test_the_first_one_does_it(pela, artefact, monkeypatch):
    for name, value in {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    code, out, _ = pela("verify", "a")
    assert code == 0
    assert out
