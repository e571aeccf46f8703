"""What was measured once is read back; what is damaged or of other conditions is measured anew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pelacli.measure import layer_times_cache
from pelacli.measure.layer_times import Case, LayerTimes, ranks_to_time
from pelacli.report.latencies import Conditions

CASE = Case(96, 64, True, 10)
HERE = Conditions("cpu", "Some CPU", 2, "fp32", False)


class Measured:
    """In the place of a measurement: counts them, and gives other times in each."""

    def __init__(self):
        self.cases = []

    def __call__(self, case, forms, device, dtype, *, compile):
        self.cases.append(case)
        number = len(self.cases)
        tables = {form: {r: 100 * number + r for r in ranks_to_time(case, form)} for form in forms}
        return LayerTimes(1000 * number, tables)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pela" / "latency"


@pytest.fixture
def measured(cache):
    return Measured()


def ask(measured, conditions=HERE, case=CASE, forms=("factors",)):
    return layer_times_cache.times([case], forms, conditions, measure=measured)[case]


def test_a_second_time_nothing_is_measured(measured):
    assert ask(measured) == ask(measured) == ask(Measured())
    assert measured.cases == [CASE]


def test_a_case_that_many_layers_share_is_measured_once(measured):
    times = layer_times_cache.times([CASE, CASE], ["factors"], HERE, measure=measured)
    assert list(times) == measured.cases == [CASE]


@pytest.mark.parametrize(
    "other",
    [
        {"model": "Another CPU"},
        {"device": "cuda"},
        {"threads": 4},
        {"precision": "bf16"},
        {"compile": True},
    ],
)
def test_other_conditions_are_measured_anew(measured, other):
    first = ask(measured)
    assert ask(measured, replace(HERE, **other)) != first
    assert len(measured.cases) == 2
    assert ask(measured) == first


@pytest.mark.parametrize("other", [{"out": 64}, {"in_": 96}, {"bias": False}, {"tokens": 11}])
def test_other_layers_are_measured_anew(measured, other):
    ask(measured)
    ask(measured, case=replace(CASE, **other))
    assert len(measured.cases) == 2


def test_another_torch_is_measured_anew(measured, monkeypatch):
    ask(measured)
    monkeypatch.setattr(layer_times_cache.torch, "__version__", "99.0")
    ask(measured)
    assert len(measured.cases) == 2


def test_a_form_that_is_missing_is_measured_with_the_others(measured):
    ask(measured)
    ask(measured, forms=("factors", "other"))
    ask(measured, forms=("other",))
    assert len(measured.cases) == 2


def damaged(document):
    """Texts that a file may hold in place of what it should."""
    text = json.dumps(document)
    yield from ("", text[:-9], "[]", "null", "\x00", "{}")
    yield json.dumps(document | {"dense": 0})
    yield json.dumps(document | {"dense": "12"})
    yield json.dumps(document | {"forms": {"factors": {"x": 3}}})
    yield json.dumps(document | {"forms": {"factors": {"8": 3}}})  # too few ranks
    yield json.dumps(document | {"key": document["key"] | {"tokens": 9}})
    table = document["forms"]["factors"]
    yield json.dumps(document | {"forms": {"factors": dict.fromkeys(table, -1)}})


def test_a_damaged_file_is_measured_anew_and_mended(measured, cache):
    ask(measured)
    [file] = cache.iterdir()
    texts = list(damaged(json.loads(file.read_text())))
    for number, text in enumerate(texts):
        file.write_text(text)
        assert ask(measured).dense == 1000 * (number + 2), text
        assert ask(measured).dense == 1000 * (number + 2)
    assert len(measured.cases) == 1 + len(texts)


def test_a_cache_that_can_not_be_written_is_said_and_no_more(
    measured, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("pelacli.console.verbosity.said", set())
    assert ask(measured).dense == 1000
    assert ask(measured).dense == 2000
    assert capsys.readouterr().err.count("measured again next time") == 1


def test_without_a_variable_the_cache_is_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for relative in ("", "cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert layer_times_cache.folder() == tmp_path / ".cache" / "pela" / "latency"
