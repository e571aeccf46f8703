"""What models cost: exact rows for JSON and CSV, human units for Markdown and the terminal."""

import csv
import io
import json

import pytest

from pelacli.manifest.document import Count, LayerRecord, Manifest, SourceRecord
from pelacli.report import costs, tables


def layer(name, shape, rank=None, reason=None, energy=None, flops=True):
    out, in_ = shape
    params = Count(before=out * in_, after=out * in_ if rank is None else rank * (out + in_))
    return LayerRecord(
        name=name, shape=shape, rank=rank, reason=reason, energy=energy, params=params,
        flops=Count(before=394 * params.before, after=394 * params.after) if flops else None,
    )  # fmt: skip


@pytest.fixture
def vit():
    layers = [
        layer("blocks.0.mlp.fc1", (3072, 768), 200, energy=0.8),
        layer("blocks.10.mlp.fc1", (3072, 768), 300, energy=0.9),
        layer("blocks.11.mlp.fc1", (3072, 768), None, "break-even", 1.0),
        layer("head", (1000, 768), None, "output head"),
    ]
    saved = sum(la.params.before - la.params.after for la in layers)
    return Manifest(
        source=SourceRecord(model="vit|b", library="timm"),
        library="timm",
        energy=0.85,
        params=Count(before=86_567_656, after=86_567_656 - saved),
        flops=Count(before=35_128_000_000, after=35_128_000_000 - 394 * saved),
        layers=layers,
    )


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


def cells(markdown):
    lines = [line.strip("|").split("|") for line in markdown.splitlines()]
    return [[cell.strip() for cell in line] for line in lines if "---" not in line[0]]


def test_numbers_in_names_become_stars_but_only_whole_parts():
    kinds = {
        "blocks.3.mlp.fc1": "blocks.*.mlp.fc1",
        "layers.0.blocks.11.attn.qkv": "layers.*.blocks.*.attn.qkv",
        "0.fc2": "*.fc2",
        "encoder.1": "encoder.*",
        "h2.conv1d": "h2.conv1d",
    }
    assert {name: costs.kind_of(name) for name in kinds} == kinds


def test_a_row_per_kind_sums_its_layers(vit):
    mlp, head = costs.exact_rows({"a": vit}, "kind")
    assert mlp == {
        "model": "a", "kind": "blocks.*.mlp.fc1", "out": 3072, "in": 768, "layers": 3,
        "factorised": 2, "rank_min": 200, "rank_max": 300, "in_pivots": 0, "reason": "break-even",
        "energy": pytest.approx(0.9),
        "params_before": 3 * 3072 * 768, "params_after": 500 * 3840 + 3072 * 768,
        "flops_before": 394 * 3 * 3072 * 768, "flops_after": 394 * (500 * 3840 + 3072 * 768),
    }  # fmt: skip
    assert (head["rank_min"], head["reason"], head["energy"]) == (None, "output head", None)


def test_a_row_of_the_whole_has_its_ratios(vit):
    (row,) = costs.exact_rows({"a": vit}, "whole")
    assert (row["layers"], row["factorised"], row["energy"]) == (4, 2, 0.85)
    assert row["params_after"] == vit.params.after
    assert row["ratio"] == vit.params.after / vit.params.before
    assert row["flops_ratio"] == vit.flops.after / vit.flops.before


def test_a_kind_of_several_shapes_has_none(vit):
    vit.layers[1] = layer("blocks.10.mlp.fc1", (1536, 384), 100)
    row = costs.exact_rows({"a": vit}, "kind")[0]
    assert (row["out"], row["in"]) == (None, None)
    assert cells(tables.to_markdown(costs.human_rows({"a": vit})))[1][2] == "various"


def test_the_json_document_has_its_keys_and_exact_figures(vit):
    (model,) = json.loads(json.dumps(costs.documents({"runs/a": vit})))
    assert {"model", "params", "flops", "layers"} <= model.keys()
    assert model["model"] == "runs/a"
    assert model["params"] == {"before": 86_567_656, "after": vit.params.after}
    first, *_, head = model["layers"]
    assert {k: first[k] for k in ("name", "shape", "rank", "reason", "energy")} == {
        "name": "blocks.0.mlp.fc1", "shape": [3072, 768], "rank": 200, "reason": None,
        "energy": 0.8,
    }  # fmt: skip
    assert first["params"] == {"before": 3072 * 768, "after": 200 * 3840}
    assert (head["rank"], head["reason"]) == (None, "output head")
    vit.flops = None
    assert costs.documents({"a": vit})[0]["flops"] is None


def test_rows_say_what_is_in_pivots(vit):
    def ranks(by):
        lines = cells(tables.to_markdown(costs.human_rows({"a": vit}, by)))
        column = lines[0].index("rank")
        return [line[column] for line in lines[1:3]]

    vit.layers[0].form = "pivots"
    assert [row["form"] for row in costs.exact_rows({"a": vit})] == [
        "pivots",
        "factors",
        None,
        None,
    ]
    assert costs.exact_rows({"a": vit}, "kind")[0]["in_pivots"] == 1
    assert ranks("layer") == ["200 in pivots", "300"]
    assert ranks("kind")[0] == "200–300, 1 in pivots, 1 dense"
    vit.layers[1].form = "pivots"
    assert ranks("kind")[0] == "200–300 in pivots, 1 dense"


def test_exact_rows_are_exact_as_csv(vit):
    rows = read_csv(tables.to_csv(costs.exact_rows({"a": vit, "b,c": vit})))
    assert len(rows) == 8
    assert [rows[0]["model"], rows[4]["model"]] == ["a", "b,c"]
    assert rows[0]["params_after"] == "768000"
    assert rows[0]["flops_before"] == str(394 * 3072 * 768)
    assert (rows[2]["rank"], rows[2]["reason"]) == ("", "break-even")
    whole = read_csv(tables.to_csv(costs.exact_rows({"a": vit}, "whole")))[0]
    assert whole["params_before"] == "86567656"


def test_human_rows_add_up_to_the_total(vit):
    lines = cells(tables.to_markdown(costs.human_rows({"a": vit})))
    assert lines[0] == ["kind", "layers", "shape", "rank", "energy", "params", "FLOPs"]
    assert lines[1] == [
        "blocks.*.mlp.fc1", "3", "3072×768", "200–300, 1 dense", "90.00%", "7.08 M → 4.28 M",
        "2.79 G → 1.69 G",
    ]  # fmt: skip
    assert lines[2][3:] == ["dense (output head)", "–", "768 k", "303 M"]
    assert lines[3][0] == "other"
    assert lines[3][5:] == ["78.7 M", "32.0 G"]
    assert lines[4][0] == "total"
    assert lines[4][4:] == ["85.00%", "86.6 M → 83.8 M", "35.1 G → 34.0 G"]
    by_layer = cells(tables.to_markdown(costs.human_rows({"a": vit}, "layer")))
    assert by_layer[3][:3] == ["blocks.11.mlp.fc1", "3072×768", "dense (break-even)"]
    several = cells(tables.to_markdown(costs.human_rows({"a": vit, "b": vit}, "whole")))
    assert [line[0] for line in several] == ["model", "a", "b"]
    assert several[1][1] == "2 of 4 factorised"
    assert costs.kinds_markdown(vit) == tables.to_markdown(costs.human_rows({"x": vit}))


def test_unknown_flops_are_a_dash(vit):
    vit.layers[0].flops = None
    lines = cells(tables.to_markdown(costs.human_rows({"a": vit})))
    assert lines[1][6] == "–"
    assert lines[3][6] == "–"  # what is left over is then unknown too
    assert lines[4][6] != "–"
    vit.flops = None
    assert cells(tables.to_markdown(costs.human_rows({"a": vit}, "whole")))[1][4] == "–"


def test_held_back_errors_of_layers_have_a_column_where_they_are_known():
    count = Count(before=64, after=48)
    one, two = (LayerRecord(name=n, shape=(8, 8), rank=3, params=count) for n in ("a", "b"))
    known = Manifest(
        source=SourceRecord(model="m", library="timm"), library="timm", params=count,
        layers=[one, two],
    )  # fmt: skip
    assert "held-back error" not in costs.human_rows({"m": known}, "layer")[0]
    one.held_back_error = 0.12345
    rows = costs.human_rows({"m": known}, "layer")
    assert [row["held-back error"] for row in rows] == ["0.123", "–", "", ""]
    assert [row["held_back_error"] for row in costs.exact_rows({"m": known})] == [0.12345, None]
