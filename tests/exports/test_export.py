"""``pela export``: what it refuses, and what it leaves when it fails."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from albef_tiny import tiny
from refusals import refused as refused
from refusals import tree
from tied_checkpoints import checkpoint
from tiny_detectors import FAMILIES, tiny_detector

import pelacli
from pelacli.artefact import loading
from pelacli.errors import RequestError
from pelacli.exports import dense, targets


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--to", "onxx", "-o", "x.onnx"), "onxx: give dense, onnx, torch; did you mean onnx"),
        (("--to", "onnx", "-o", "x"), "--output x: --to onnx writes a file; .* ends in .onnx"),
        (("--to", "torch", "-o", "x.pt"), "ends in .pt2"),
        (
            ("--to", "onnx", "-o", "x.onnx", "--precision", "bf16"),
            "bf16: --to onnx takes fp32, fp16",
        ),
        (("--to", "dense", "-o", "x", "--precision", "int8"), "int8: --to dense takes fp32"),
        (("--to", "dense", "-o", "x", "--opset", "20"), "--opset 20: it is for --to onnx"),
        (("--to", "onnx", "-o", "x.onnx", "--opset", "7"), "--opset 7: give 18 to 23"),
        (("--to", "dense", "-o", "a"), "a: exists; choose another output"),
        (("--to", "onnx", "-o", "old.onnx"), "old.onnx: exists; choose another output"),
        (("--to", "dense", "-o", "broken"), "broken: exists; choose another output"),
        (("--to", "dense", "-o", "old.onnx/x"), "old.onnx is a file, not a directory"),
        (("--to", "dense", "-o", "x", "--tolerance", "0"), "--tolerance 0: give a number above 0"),
        (("--to", "dense", "-o", "x", "--tolerance", "nan"), "nan: give a number above 0"),
        (("--to", "dense", "-o", "x", "--data", "none"), "none"),
        (("--to", "dense"), "Missing option '--output'"),
        (("-o", "x"), "Missing option '--to'"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_leaves_everything(refused, artefact, args, says):
    import re

    (artefact.parent / "old.onnx").write_bytes(b"mine")
    (artefact.parent / "broken").symlink_to("nowhere")
    assert re.search(says, refused("export", "a", *args))


def test_what_is_no_model_is_refused(refused, here):
    assert "nothing" in refused("export", "nothing", "--to", "dense", "-o", "x")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_one_line_names_it(refused, artefact, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    line = refused("export", "a", "--to", "onnx", "-o", "x.onnx")
    assert f"--to onnx: needs {missing}: pip install 'pelacli[onnx]'" in line


def test_an_onnxruntime_that_does_not_load_is_one_line(refused, artefact, monkeypatch):
    """As one that was built for another numpy, or for a newer system."""
    (artefact.parent / "path").mkdir()
    (artefact.parent / "path" / "onnxruntime.py").write_text("raise ImportError('GLIBC_2.99')")
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.syspath_prepend(str(artefact.parent / "path"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    line = refused("export", "a", "--to", "onnx", "-o", "x.onnx")
    assert "onnxruntime is installed and can't be loaded (ImportError: GLIBC_2.99)" in line


@pytest.mark.parametrize("fault", ["far", "not a number", "other names"])
def test_an_export_that_is_too_far_from_the_artefact_is_removed(
    refused, artefact, fault, monkeypatch
):
    run = dense.run

    def wrong(at, batches, opened):
        outputs = run(at, batches, opened)
        if fault == "other names":
            return [{"other": batch["logits"]} for batch in outputs]
        outputs[-1]["logits"][0, 0] += 0.01 if fault == "far" else torch.nan
        return outputs

    monkeypatch.setattr(dense, "run", wrong)
    line = refused("export", "a", "--to", "dense", "-o", "x", code=1)
    assert "x: nothing is written: the largest relative difference to a would be" in line
    assert "in fp32, and 1.0e-04 is allowed" in line
    assert ("--tolerance sets another bound" in line) == (fault == "far")
    if fault == "far":
        exported = pelacli.export("a", "x", to="dense", tolerance=0.5)
        assert 1e-4 < exported.difference < exported.bound == 0.5
    else:
        refused("export", "a", "--to", "dense", "-o", "x", "--tolerance", "1e9", code=1)


def test_what_comes_to_the_place_meanwhile_is_not_replaced(pela, artefact, monkeypatch):
    run, output = dense.run, artefact.parent / "x"

    def slow(at, batches, opened):
        output.mkdir(exist_ok=True)
        (output / "theirs").write_text("theirs")
        return run(at, batches, opened)

    monkeypatch.setattr(dense, "run", slow)
    code, _, err = pela("export", "a", "--to", "dense", "-o", "x")
    assert (code, err) == (2, "pela: error: x: exists; choose another output\n")
    assert [path.name for path in output.iterdir()] == ["theirs"]
    assert sorted(path.name for path in artefact.parent.iterdir()) == ["a", "x"]


def test_the_artefact_stays_as_it_is_and_a_run_directory_stands_for_its_last_step(
    pela, here, decomposed
):
    shutil.copytree(decomposed, here / "r" / "decompose")
    before = tree(here)
    code, out, err = pela("export", "r", "--to", "dense", "-o", "new/x", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["difference"] < document["bound"] == 1e-4
    assert {"artefact", "to", "path", "precision", "opset", "batches", "bytes", "seconds"} <= set(
        document
    )
    after = tree(here)
    assert {name: after[name] for name in before} == before
    assert "largest relative difference" in (here / "new" / "x" / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("T5ForConditionalGeneration", "has an encoder and a decoder; .*--to dense takes it"),
        ("detector", "finds objects; .*--to dense takes it"),
    ],
)
def test_kinds_that_a_graph_does_not_hold_are_refused_and_folded(kind, says, tmp_path):
    if kind == "detector":
        model = tiny_detector(FAMILIES[0][0]).module
        pelacli.decompose(model, 0.7, scope="layers")
    else:
        model = loading.open(str(checkpoint(kind, tmp_path / "m", "tied", True)))[0].module
        pelacli.decompose(model, 0.7, scope="layers")
    for name in ("onnx", "torch"):
        with pytest.raises(RequestError, match=says):
            pelacli.export(model, tmp_path / f"x{targets.get(name).SUFFIX}", to=name)
    assert pelacli.export(model, tmp_path / "d", to="dense").difference < 1e-4


@pytest.mark.parametrize("to", list(targets.TARGETS))
def test_models_that_only_pela_builds_are_refused(to, tmp_path):
    with pytest.raises(RequestError, match="neither timm nor transformers builds"):
        pelacli.export(tiny("pretrain"), tmp_path / f"x{targets.get(to).SUFFIX}", to=to)
    own = torch.nn.Sequential(torch.nn.Linear(8, 8))
    with pytest.raises(RequestError, match="neither timm nor transformers builds"):
        pelacli.export(own, tmp_path / f"x{targets.get(to).SUFFIX}", to=to)
