"""Times and amounts are written for people."""

from __future__ import annotations

import pytest

from pelacli.system.amounts import Unit, duration, share_done, span


@pytest.mark.parametrize(
    ("least", "most", "text"),
    [(41, 58, "41 to 58 s"), (170, 283, "2.8 to 4.7 min"), (5000, 9000, "1.4 to 2.5 h")],
)
def test_a_span_has_one_unit(least, most, text):
    assert span(least, most) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (6000, "1.7 h")],
)
def test_a_stretch_of_time_has_one_unit(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("done", "total", "unit", "text"),
    [
        (64, 256, Unit.PIECES, "64 of 256"),
        (3.14e9, 14.2e9, Unit.BYTES, "3.1 of 14.2 GB"),
        (64e6, 269e6, Unit.BYTES, "64.0 of 269.0 MB"),
        (0.234, 1, Unit.SHARE, "23 %"),
    ],
)
def test_how_far_work_is_has_one_unit(done, total, unit, text):
    assert share_done(done, total, unit) == text
