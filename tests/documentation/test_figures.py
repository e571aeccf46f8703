"""The pictures of the documentation."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET

import pytest
from documentation.pages import ROOT

FIGURES = sorted((ROOT / "docs" / "figures").glob("*.svg"))


@pytest.mark.parametrize("figure", FIGURES, ids=[figure.stem for figure in FIGURES])
def test_pictures_are_read_in_light_and_dark_and_without_seeing(figure):
    text = figure.read_text(encoding="utf-8")
    picture = ET.fromstring(text)
    assert picture.get("aria-label")
    assert "prefers-color-scheme: dark" in text
    assert 'class="ground"' in text  # readable on a page of the other colour too


def test_the_readmes_picture_shows_what_was_recorded(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import quality_by_size

    quality_by_size.main([str(tmp_path / "drawn.svg")])
    drawn = (tmp_path / "drawn.svg").read_text(encoding="utf-8")
    assert drawn == quality_by_size.FIGURE.read_text(encoding="utf-8")
    curves = quality_by_size.curves(quality_by_size.read(quality_by_size.ROWS))
    assert curves["pela"][0.5] == pytest.approx(82.64, abs=0.01)
    assert curves["plain-uniform"][1 / 3] == pytest.approx(9.23, abs=0.01)
    sys.modules.pop("quality_by_size")
