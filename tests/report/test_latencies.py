"""What a report says of times that are given."""

from __future__ import annotations

import pytest

from pelacli.errors import RequestError
from pelacli.manifest.document import Count, LayerRecord, Manifest, SourceRecord
from pelacli.report import latencies
from pelacli.report.latencies import Conditions, Speed, Speeds, TimingRequest
from pelacli.system.turns import Timing

CPU = Conditions("cpu", "Some CPU", 2, "fp32", False)
GPU = Conditions("cuda", "Some GPU", 2, "bf16", True)


def speeds(*times, conditions=CPU, spread=0.1):
    """Of (batch size, low-rank ms, dense ms)."""

    def timing(ms):
        return None if ms is None else Timing(ms, ms - spread, ms + spread)

    return Speeds(conditions, [Speed(n, timing(own), timing(dense)) for n, own, dense in times])


def manifest(rank=24, unit="params", form="factors"):
    count = Count(before=100, after=50)
    layer = LayerRecord(name="a", shape=(64, 64), rank=rank, form=form, params=count)
    source = SourceRecord(model="m", library="timm")
    return Manifest(source=source, library="timm", params=count, unit=unit, layers=[layer])


def test_a_row_holds_both_times_and_how_they_were_measured():
    rows = latencies.exact_rows({"m": speeds((8, 5.0, 10.0), conditions=GPU)})
    assert rows == [
        {
            "model": "m", "batch_size": 8, "device": "cuda", "device_name": "Some GPU",
            "threads": 2, "precision": "bf16", "compile": True,
            "median_ms": 5.0, "lower_ms": 4.9, "upper_ms": 5.1,
            "dense_median_ms": 10.0, "dense_lower_ms": 9.9, "dense_upper_ms": 10.1,
            "speedup": 2.0, "peak_bytes": None, "dense_peak_bytes": None,
        }
    ]  # fmt: skip


def test_a_dense_model_has_no_other_beside_it():
    alone = speeds((1, 5.0, None))
    assert latencies.document(alone)[0]["speedup"] is None
    assert latencies.human_rows({"m": alone}) == [{"batch": 1, "ms": "5 (4.9–5.1)"}]
    assert latencies.slower_than_dense("m", alone, manifest()) is None


def test_models_of_different_precision_say_which():
    both = {"a": speeds((1, 5.0, 6.0)), "b": speeds((1, 5.0, 6.0), conditions=GPU)}
    assert [row["precision"] for row in latencies.human_rows(both)] == ["fp32", "bf16"]
    assert "fp32" not in latencies.title(both)
    assert "fp32" in latencies.title({"a": both["a"]})


def test_where_low_rank_is_slower_a_line_says_so_and_what_to_do():
    line = latencies.slower_than_dense("m", speeds((1, 4.0, 2.0), (32, 5.0, 10.0)), manifest(20))
    assert line == (
        "m: slower than dense at batch size 1 (0.50 × its speed) on cpu in fp32; batches of 32 are "
        "2.00 × as fast as dense, time it with --compile, decompose by time (--unit latency) or "
        "decompose with --multiple 8"
    )
    assert latencies.slower_than_dense("m", speeds((1, 2.0, 4.0)), manifest()) is None


def test_only_what_has_not_been_tried_is_advised():
    slow = speeds((1, 4.0, 2.0), conditions=GPU)
    said = latencies.slower_than_dense("m", slow, manifest(rank=64))
    assert "--compile" not in said
    assert "--multiple" not in said
    assert "--form" not in said
    assert "--unit latency" in said
    said = latencies.slower_than_dense("m", slow, manifest(64, unit="latency", form="pivots"))
    assert "--unit" not in said
    assert "--form factors" in said
    assert "--multiple 32" in latencies.slower_than_dense("m", slow, manifest(rank=24))
    assert "--multiple" not in latencies.slower_than_dense("m", speeds((1, 4.0, 2.0)), manifest(24))


def test_a_difference_within_the_spread_is_called_that():
    close = speeds((1, 4.1, 4.0), spread=0.5)
    assert "(within the spread)" in latencies.slower_than_dense("m", close, manifest())
    apart = speeds((1, 8.0, 4.0), spread=0.5)
    assert "spread" not in latencies.slower_than_dense("m", apart, manifest())


@pytest.mark.parametrize("text", ["0", "-1", "1,,2", "x", "1.5", "٣", ",", " ", "1;2", "9" * 12])
def test_batch_sizes_are_whole_numbers(text):
    with pytest.raises(RequestError, match="give numbers from 1 on"):
        TimingRequest.parse(device=None, batch_sizes=text, precision=None, compile=False)


def test_each_batch_size_is_timed_once():
    ask = TimingRequest.parse(device=None, batch_sizes="8, 1,8", precision=None, compile=False)
    assert ask.batch_sizes == [8, 1]


def test_a_precision_that_there_is_not_is_refused():
    with pytest.raises(RequestError, match="--precision int8: give fp32, bf16 or fp16"):
        TimingRequest(precision="int8")
