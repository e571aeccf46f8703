"""``pela report --sweep``: what other budgets would give, from stored spectra."""

from __future__ import annotations

import csv
import io
import shutil
import time
from fractions import Fraction
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from json_output import document
from safetensors.torch import load_file

from pelacli.console import figures
from pelacli.errors import RequestError
from pelacli.manifest.document import Count, LayerRecord, Manifest, SourceRecord
from pelacli.planning import stored, sweep
from pelacli.planning.stored import About, Spectra
from pelacli.ranks.spectrum import Spectrum


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.9..0.3:3", "0.9 0.6 0.3"),
        ("0.3..0.9:2", "0.3 0.9"),
        ("1..1/2:5", "1 0.875 0.75 0.625 1/2"),
        ("2/3 .. 1/3 : 3", "2/3 0.5 1/3"),
        (".9...3:3", ".9 0.6 .3"),
        ("0.9..0.3", "0.9 0.8333 0.7667 0.7 0.6333 0.5667 0.5 0.4333 0.3667 0.3"),
        ("0.5..0.5001:4", "0.5 0.50003 0.50007 0.5001"),
        ("1e-6..2e-6:3", "1e-6 0.0000015 2e-6"),
        ("0.9,2/3, 1/2", "0.9 2/3 1/2"),
        ("0.5,0.5", "0.5 0.5"),
    ],
)
def test_a_range_or_a_list_gives_its_ratios(text, expected):
    assert sweep.parse_ratios(text) == expected.split()


def test_a_thousand_ratios_are_all_different():
    ratios = [Fraction(ratio) for ratio in sweep.parse_ratios("0.30..0.31:1000")]
    assert len(set(ratios)) == 1000
    assert ratios == sorted(ratios)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.3", "give a range as 0.9..0.3"),
        ("", "--sweep: is empty"),
        ("x..y", "'x' is no ratio"),
        ("0.9..", "give a range as 0.9..0.3"),
        ("..0.3", "give a range as 0.9..0.3"),
        ("0..1", "0 is out of range; a ratio is above 0 and at most 1"),
        ("0.5..1.5", "1.5 is out of range"),
        ("0.9..-0.3", "-0.3 is out of range"),
        ("1/0..0.5", "'1/0' is no ratio"),
        ("0.9...0.3...0.1", "is no ratio"),
        ("0.5..1/2", "its ends are equal"),
        ("0.9..0.3:1", "'1' is no number of budgets from 2 to 1000"),
        ("0.9..0.3:1001", "from 2 to 1000"),
        ("0.9..0.3:ten", "from 2 to 1000"),
        ("0.9..0.3:", "from 2 to 1000"),
        ("0.9..0.3:2.5", "from 2 to 1000"),
        ("0.9,", "'' is no ratio"),
        ("0.9,2", "2 is out of range"),
    ],
)
def test_what_is_no_range_nor_list_of_ratios_is_refused_in_one_line(pela, artefact, text, says):
    code, out, err = pela("report", "a", "--sweep", text)
    assert (code, out) == (2, "")
    assert err.startswith(f"pela: error: --sweep {text}".rstrip())
    assert says in err
    assert err.count("\n") == 1


def swept(pela, *args):
    (sweep_document,) = document(pela("report", *args, "--json"))
    return sweep_document


FLAGS = [
    [],
    ["--scope", "layers", "--policy", "uniform"],
    ["--unit", "flops"],
    ["--multiple", "8", "--min-rank", "4", "--pin", r"blocks\.0\.=dense", "--exclude", "qkv"],
]


@pytest.mark.parametrize("flags", FLAGS)
def test_each_row_is_what_decompose_would_make(pela, here, checkpoint, flags):
    """Also at the artefact's own ratio, so with no option every row has the artefact's settings."""
    model = ("decompose", checkpoint, "--arch", "test_vit", *flags)
    made = document(pela(*model, "--ratio", "0.7", "-o", "a", "--json"))
    answer = swept(pela, "a", "--sweep", "0.8,0.7,3/4")
    assert answer["model"] == "a"
    keys = ("policy", "scope", "unit")
    assert [answer[key] for key in keys] == [made[key] for key in keys]
    assert (answer["params"], answer["flops"]) == (
        made["params"]["before"],
        made["flops"]["before"],
    )
    tensors = load_file(checkpoint)
    for row, ratio in zip(answer["budgets"], ("0.8", "0.7", "3/4"), strict=True):
        whole = (
            made
            if ratio == "0.7"
            else document(pela(*model, "--ratio", ratio, "--dry-run", "--json"))
        )
        assert row["ratio"] == ratio
        assert row["params"] == whole["params"]["after"]
        assert row["flops"] == whole["flops"]["after"]
        assert row["energy"] == whole["energy"]
        planned = [la for la in whole["layers"] if la["energy"] is not None]
        counted = planned if answer["scope"] == "layers" else [whole]
        unit = answer["unit"]
        after, before = (sum(la[unit][k] for la in counted) for k in ("after", "before"))
        assert row["achieved"] == figures(after / before)
        assert after <= Fraction(ratio) * before
        ranks = [la["rank"] for la in whole["layers"] if la["rank"] is not None]
        assert (row["factorised"], row["dense"]) == (len(ranks), len(whole["layers"]) - len(ranks))
        assert (row["rank_min"], row["rank_max"]) == (min(ranks), max(ranks))
        assert row["rank_median"] == median(ranks)
        # No calibration: the damage is ‖W − W′‖² of the best W′, from the weights' own spectra.
        lost = 0.0
        for la in planned:
            weight = tensors[f"{la['name']}.weight"].double().numpy()
            values = np.linalg.svd(weight, compute_uv=False)
            lost += 0 if la["rank"] is None else float((values[la["rank"] :] ** 2).sum())
        assert row["damage"] == pytest.approx(lost, rel=1e-4)
        assert row["problem"] is None
        assert row["smallest"] is None
    assert answer["samples"] == 0
    assert answer["damage_unit"] == "squared Frobenius error of the weights"


def test_flags_win_over_the_artefacts_own_settings(pela, artefact, checkpoint):
    other = ("--scope", "layers", "--policy", "uniform")
    answer = swept(pela, "a", "--sweep", "0.9,0.4", *other)
    assert (answer["policy"], answer["scope"], answer["unit"]) == ("uniform", "layers", "params")
    model = ("decompose", checkpoint, "--arch", "test_vit", *other)
    for row in answer["budgets"]:
        made = document(pela(*model, "--ratio", row["ratio"], "--dry-run", "--json"))
        assert (row["energy"], row["params"]) == (made["energy"], made["params"]["after"])


def test_flops_are_counted_as_decompose_counts_them(pela, artefact):
    answer = swept(pela, "a", "--sweep", "0.7,0.5", "--unit", "flops")
    assert answer["unit"] == "flops"
    for row in answer["budgets"]:
        assert row["achieved"] == figures(row["flops"] / answer["flops"])
        assert row["flops"] <= float(row["ratio"]) * answer["flops"]
    assert (
        "ratio of the model's FLOPs"
        in pela("report", "a", "--sweep", "1,0.5", "--unit", "flops")[1]
    )


def test_an_artefact_by_threshold_is_swept_by_energy(pela, here, checkpoint):
    model = ("decompose", checkpoint, "--arch", "test_vit")
    document(pela(*model, "--threshold", "0.8", "-o", "t", "--json"))
    swept_t = swept(pela, "t", "--sweep", "0.9,0.5")
    assert swept_t["policy"] == "energy"
    made = document(pela(*model, "--ratio", "0.5", "--dry-run", "--json"))
    assert swept_t["budgets"][1]["energy"] == made["energy"]


def test_csv_markdown_and_table_show_the_rows_of_the_json(pela, artefact):
    ask = ("report", "a", "--sweep", "0.9..0.5:3")
    rows = swept(pela, *ask[1:])["budgets"]
    lines = list(csv.DictReader(io.StringIO(pela(*ask, "--format", "csv")[1])))
    assert [line["model"] for line in lines] == ["a"] * 3
    for line, row in zip(lines, rows, strict=True):
        assert float(line["damage"]) == row["damage"]
        assert int(line["params"]) == row["params"]
        assert float(line["achieved"]) == row["achieved"]
    markdown = pela(*ask, "--format", "markdown")[1]
    assert "| ratio | achieved | parameters | FLOPs | energy kept | damage |" in markdown
    table = pela(*ask)[1]
    for text in (markdown, table):
        assert "damage: squared Frobenius error of the weights (no calibration)" in text
        assert all(f"{100 * row['energy']:.2f}%" in text for row in rows)
        assert "note" not in text


def test_a_ratio_that_can_not_be_met_is_a_row_that_names_the_smallest(pela, artefact):
    possible, bad = swept(pela, "a", "--sweep", "0.5,0.01")["budgets"]
    assert possible["problem"] is None
    assert "ratio 0.01 cannot be met: the smallest possible is" in bad["problem"]
    assert {key for key, value in bad.items() if value is not None} == {
        "ratio", "smallest", "problem",
    }  # fmt: skip
    # What is named can be met, and a ten-thousandth less cannot.
    least = Fraction(bad["smallest"])
    both = f"{float(least)},{float(least - Fraction(1, 10_000))}"
    at, below = swept(pela, "a", "--sweep", both)["budgets"]
    assert at["problem"] is None
    assert below["problem"] is not None
    assert (
        f"not possible: smallest {bad['smallest']}" in pela("report", "a", "--sweep", "0.5,0.01")[1]
    )
    code, out, err = pela("report", "a", "--sweep", "0.01,0.02")
    assert (code, out) == (2, "")
    assert "ratio 0.01 cannot be met: the smallest possible is" in err


def test_an_artefact_a_file_a_run_or_all_runs_may_be_named(pela, artefact, here):
    """A later step of a run need not carry spectra."""
    shutil.copy(artefact / "spectra.safetensors", here / "s")
    for step in ("decompose", "finetune"):
        shutil.copytree(artefact, here / "runs" / "x" / step)
    (here / "runs" / "x" / "finetune" / "spectra.safetensors").unlink()
    rows = [swept(pela, ref, "--sweep", "0.9,0.5") for ref in ("a", "s", "runs/x", "runs")]
    rows += [swept(pela, "--sweep", "0.9,0.5")]
    run = str(Path("runs/x/decompose"))
    assert [model["model"] for model in rows] == ["a", "s", run, run, run]
    assert all(model["budgets"] == rows[0]["budgets"] for model in rows)
    both = document(pela("report", "a", "s", "--sweep", "0.9,0.5", "--json"))
    assert [model["model"] for model in both] == ["a", "s"]
    listed = document(pela("report", "s", "--json"))[0]  # without a sweep: the dense model
    assert listed["params"]["after"] == listed["params"]["before"] == rows[0]["params"]

    nowhere = "there are no stored spectra; name what `pela decompose` wrote, or make some"
    for ref in ("runs/x/finetune", "test_vit", "nothing_like_it"):
        code, out, err = pela("report", ref, "--sweep", "0.9..0.3")
        assert (code, out) == (2, "")
        assert f"{ref}: {nowhere}" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--policy", "uniform"], "--policy uniform: belongs to --sweep"),
        (["--sweep", "0.9..0.3", "--policy", "threshold"], "a sweep has energy and uniform"),
        (["--sweep", "0.9..0.3", "--scope", "x"], "--scope: 'x' is none of model, layers"),
        (["--sweep", "0.9..0.3", "--format", "x"], "--format x: give table, json, csv or markdown"),
    ],
)
def test_flags_that_a_sweep_does_not_have_are_refused_in_one_line(pela, artefact, args, says):
    code, out, err = pela("report", "a", *args)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def vit_base() -> Spectra:
    """Spectra of ViT-B's shape: 48 layers of 768."""
    rng = np.random.default_rng(0)
    shapes = {"qkv": (2304, 768), "proj": (768, 768), "fc1": (3072, 768), "fc2": (768, 3072)}
    layers = [
        Spectrum(f"blocks.{n}.{name}", shape, np.sort(rng.exponential(size=768) ** 2)[::-1], 197.0)
        for n in range(12)
        for name, shape in shapes.items()
    ]
    rows = [
        LayerRecord(
            name=s.name,
            shape=s.shape,
            params=Count(before=s.shape[0] * s.shape[1], after=s.shape[0] * s.shape[1]),
        )
        for s in layers
    ]
    dense = Manifest(
        source=SourceRecord(model="vit", library="timm"),
        library="timm",
        params=Count(before=86_567_656, after=86_567_656),
        layers=rows,
    )
    fixed = 86_567_656 - sum(row.params.before for row in rows)
    tokens = {s.name: s.tokens for s in layers}
    return Spectra(layers, About(dense=dense, tokens=tokens, fixed_params=fixed, samples=256))


@pytest.mark.parametrize("policy", ["energy", "uniform"])
def test_ten_ratios_of_a_real_size_are_planned_within_a_second(policy, tmp_path):
    """A second or two for all of it is the promise; here only what comes after the imports."""
    stored.save(vit_base(), tmp_path / "s")
    start = time.process_time()
    spectra = stored.load(tmp_path / "s")
    result = sweep.run(spectra, sweep.parse_ratios("0.9..0.3"), {"policy": policy}, "s")
    assert time.process_time() - start < 1
    lost = [row["damage"] for row in result.rows]
    kept = [row["energy"] for row in result.rows]
    assert lost == sorted(lost)
    whole = sum(float(s.energies.sum()) for s in spectra.layers)
    assert lost == pytest.approx([(1 - share) * whole for share in kept])
    assert all(row["params"] <= Fraction(row["ratio"]) * 86_567_656 for row in result.rows)
    assert all(row["flops"] is None for row in result.rows)
    with pytest.raises(RequestError, match="FLOPs are unknown"):
        sweep.run(spectra, ["0.5"], {"unit": "flops"}, "s")
