"""Values in files of a folder."""

from __future__ import annotations

import pytest
import torch

from pelacli.errors import PelaError
from pelacli.system.shelf import Shelf


def test_a_refusal_without_words_is_named_by_its_class(tmp_path, monkeypatch):
    def refuse(value, file):
        raise RuntimeError

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(PelaError, match="RuntimeError; what does not fit in memory goes there"):
        Shelf(tmp_path).put("a", torch.zeros(2))
    assert not list(tmp_path.iterdir())
