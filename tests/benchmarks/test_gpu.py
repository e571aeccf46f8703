"""The benchmark for GPUs runs on tiny models on the CPU, goes on where it stopped, and judges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pretended_timing import pretended_layer_times

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    """The module, which is a script and in no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


@pytest.fixture
def quick(gpu, tmp_path, monkeypatch):
    """Run tiny models; gives the rows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("pelacli.measure.layer_times.measure", pretended_layer_times)
    file = tmp_path / "rows.jsonl"

    def run(only, *more):
        gpu.main(["--quick", "--out", str(file), "--only", only, *more])
        return gpu.read(file)

    return run


@pytest.mark.parametrize(
    "work",
    [
        "inference vit_base",
        pytest.param("healing vit_base", marks=pytest.mark.slow),
        pytest.param("prefill smollm2", marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_work_gives_a_row_for_each_variant(gpu, quick, capsys, work):
    rows = quick(work)
    cells = [c for c in gpu.cells(2, quick=True) if f"{c.work} {c.model}".startswith(work)]
    assert [row["variant"] for row in rows] == [cell.variant for cell in cells]
    assert not [row["error"] for row in rows if "error" in row]
    for row in rows:
        assert row["ms"]["lower"] <= row["ms"]["median"] <= row["ms"]["upper"]
        assert row["speed"] == row["dense_ms"]["median"] / row["ms"]["median"]
    assert capsys.readouterr().out.count(work) == len(rows)


def test_half_of_each_layer_is_half_the_flops(gpu, monkeypatch):
    import _gpu_subjects as subjects

    subject = subjects.vision("vit_base", 1, "cpu", tiny=True)
    shapes = {layer.name: layer.shape for layer in subject.layers}
    for form in ("factors", "pivots"):
        for name, rank in subjects.uniform_ranks(subject.layers, form, 1).items():
            out, in_ = shapes[name]

            def weights(r, saved=out + in_, form=form):
                return r * (saved - (r if form == "pivots" else 0))

            assert weights(rank) <= out * in_ / 2 < weights(rank + 1)


def test_a_run_goes_on_where_it_stopped(gpu, quick, tmp_path):
    file = tmp_path / "rows.jsonl"
    first = quick("inference vit_base")
    whole = file.read_text()
    assert quick("inference vit_base") == first  # nothing is measured twice
    file.write_text(whole[: -len(whole.splitlines()[-1]) // 2])  # killed while it wrote
    assert len(gpu.read(file)) == len(first) - 1
    assert [gpu.name(row) for row in quick("inference vit_base")] == [gpu.name(r) for r in first]


@pytest.mark.slow
def test_what_failed_and_what_another_device_gave_is_measured_again(gpu, quick, tmp_path):
    [row, *_] = quick("inference vit_base 2 eager reference")
    file = tmp_path / "rows.jsonl"
    other = row | {"machine": row["machine"] | {"device": "Some GPU"}}
    failed = {key: row[key] for key in ("work", "model", "variant", "compiled", "batch", "machine")}
    for unusable in (other, failed | {"error": "out of memory"}):
        file.write_text(json.dumps(unusable) + "\n")
        assert len(quick("inference vit_base 2 eager reference")) == 2


@pytest.mark.slow
def test_an_error_ends_its_row_and_not_the_run(gpu, quick, monkeypatch, capsys):
    def fail(subject, compiled):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(gpu.VARIANTS, "reference", fail)
    rows = quick("inference vit_base")
    assert [row["variant"] for row in rows if "error" in row] == ["reference"]
    assert "failed: out of memory" in capsys.readouterr().out


def test_no_row_is_begun_when_the_time_is_up(quick):
    assert quick("", "--minutes", "0") == []


def test_without_a_gpu_only_the_quick_run_is_made(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu.torch.accelerator, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path / "x")])
    assert "there is no GPU here" in capsys.readouterr().err


def test_the_targets_are_judged_by_the_worst_row(gpu):
    def row(work, variant, compiled, speed):
        return {"work": work, "variant": variant, "compiled": compiled, "speed": speed}

    rows = [
        row("inference", "latency", False, 1.0),
        row("prefill", "latency", False, 0.99),
        row("inference", "factors", False, 0.5),  # eager does not count
        row("inference", "factors", True, 1.4),
        row("inference", "pivots", True, 1.31),
        row("healing", "ours", True, 1.25),
        row("healing", "reference", True, 0.1),
    ]
    figures = [(figure, met) for _, figure, _, met in gpu.targets(rows)]
    assert figures == [(0.99, False), (1.31, True), (0.8, True)]
    assert [met for *_, met in gpu.targets([])] == [False] * 3
