"""A ratio is read exactly, or refused."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_text import TOP, read

from pelacli.ranks.ratio import parse as parse_ratio


@pytest.mark.parametrize(
    ("value", "ratio"),
    [
        ("2/3", Fraction(2, 3)),
        (" 2 / 3 ", Fraction(2, 3)),
        (0.1, Fraction(1, 10)),
        ("0.1", Fraction(1, 10)),
        (".5", Fraction(1, 2)),
        (1e-5, Fraction(1, 100000)),
        ("1", Fraction(1)),
        (1, Fraction(1)),
        (Fraction(1, 3), Fraction(1, 3)),
    ],
)
def test_a_ratio_is_read_exactly(value: Any, ratio: Fraction) -> None:
    assert parse_ratio(value) == ratio


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_every_fraction_up_to_one_is_a_ratio(n: int, d: int) -> None:
    n, d = sorted((n, d))
    assert parse_ratio(f"{n}/{d}") == Fraction(n, d)
    if n < d:
        with pytest.raises(ValueError, match="out of range; a ratio is above 0 and at most 1"):
            parse_ratio(f"{d}/{n}")


@given(st.floats(0, 1, exclude_min=True, allow_subnormal=False))
def test_a_float_is_read_by_its_digits(value: float) -> None:
    ratio = parse_ratio(value)
    assert ratio == Fraction(repr(value))
    assert ratio == parse_ratio(repr(value))
    assert float(ratio) == value


@given(st.integers(0, 10**12), st.integers(0, 12))
def test_a_decimal_is_its_digits_over_a_power_of_ten(digits: int, places: int) -> None:
    expected = Fraction(digits, 10**places)
    text = f"{digits // 10**places}.{digits % 10**places:0{places}d}" if places else str(digits)
    if 0 < expected <= 1:
        assert parse_ratio(text) == expected
    else:
        with pytest.raises(ValueError, match="out of range"):
            parse_ratio(text)


@pytest.mark.parametrize(
    "value", ["", "half", "1/0", "2/3/4", "50%", "0,5", "nan", "inf", "1e-999999999", "1 2", "0x1"]
)
def test_what_is_no_ratio_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="no ratio; give a decimal or a fraction: "):
        parse_ratio(value)


@pytest.mark.parametrize("value", ["0", 0.0, "-1/2", -0.5, "1.0001", 2, "3/2"])
def test_a_ratio_out_of_range_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="out of range; a ratio is above 0 and at most 1"):
        parse_ratio(value)


@pytest.mark.parametrize("text", ['"2/3"', "0.5", '"0.5"', "1"])
def test_a_recipe_keeps_the_ratio_as_it_was_written(text: str) -> None:
    section = read(TOP + f"[decompose]\nratio = {text}\n").decompose
    assert section is not None
    assert section.ratio == text.strip('"')
