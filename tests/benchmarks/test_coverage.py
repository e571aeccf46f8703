"""Architectures that each stress another thing; all of them are tried by `pytest -m slow`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import transformers
from packaging.version import Version

from pelacli.artefact import loading
from pelacli.lowrank import replace, weight

ROOT = Path(__file__).parents[2]
RELEASE = Version(transformers.__version__)
READS_WEIGHTS = Version("5.15") <= RELEASE  # Mamba; before, it calls its layers on a CPU
ROUTES = Version("5.18") <= RELEASE  # Switch; before, all tokens went one way
# What each of them does that others do not.
FEW = {
    "test_mambaout": "convolutions beside linear layers, no attention",
    "beit_base_patch16_224": "reads weights and calls F.linear itself",
    "levit_128s": "batch norm folded around its layers",
    "albert": "one layer at every depth",
    "falcon": "linear layers of a class of its own",
    "mamba": "weight @ x",
    "wavlm": "weights handed to torch's attention function",
    "layoutlmv3": "rows of a weight looked up",
    "olmo_hybrid": "blocks of two classes",
    "switch_transformers": "tokens routed by value",
    "mixtral": "experts that are one fused parameter",
    "T5ForConditionalGeneration": "head tied to the embedding, two inputs",
    "qwen2_vl": "an image in patches, its places in the text",
    "funnel": "a type of two classes",
    "BlipForQuestionAnswering": "images, a question and an answer",
}


@pytest.fixture
def coverage(monkeypatch):
    """The benchmark, which is a script and no package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import coverage

    return coverage


@pytest.fixture
def case(coverage):
    known = {case.name: case for case in coverage.cases()}
    return known.__getitem__


@pytest.mark.parametrize("name", FEW)
def test_architecture(coverage, case, name):
    row = coverage.quietly(case(name))
    assert (row["status"], row["stage"], row["why"]) == ("works", "", "")
    assert row["factorised"] >= 4
    if name == "layoutlmv3":
        assert row["dense"] == {"its weight is read (__getitem__)": 3}
    if name == "mixtral":
        assert row["dense"] == {"experts fused in one parameter": 4}
    assert bool(row["notes"]) == (name == "switch_transformers" and ROUTES)


def test_the_trial_finds_what_is_wrong(coverage, case, monkeypatch):
    """Each promise, broken on purpose."""

    def tried(name):
        row = coverage.quietly(case(name))
        return row["status"], row["stage"]

    with monkeypatch.context() as patch:
        patch.setattr(weight, "MATMULS", set())  # weights that are read are multiplied out again
        assert tried("mamba") == (("broken", "FLOPs") if READS_WEIGHTS else ("works", ""))
    with monkeypatch.context() as patch:
        load = loading.load

        def damaged(path):
            found = load(path)
            next(p for p in found.module.parameters() if p.ndim > 1).data.mul_(1 + 1e-5)
            return found

        patch.setattr(loading, "load", damaged)
        assert tried("bert") == ("broken", "save and load")
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "sub_", torch.Tensor.add)  # no step is made at all
        assert tried("bert") == ("broken", "distil")
    with monkeypatch.context() as patch:
        cut = replace.replaced
        patch.setattr(
            replace,
            "replaced",
            lambda module, factors: cut(
                module, {n: (2 * down, up, b) for n, (down, up, b) in factors.items()}
            ),
        )
        assert tried("bert") == ("broken", "full rank")


def test_a_refusal_is_one_line(coverage, case, monkeypatch):
    import _shrink

    monkeypatch.setitem(_shrink.EXCEPTIONS, "bert", {"hidden_size": 65})
    row = coverage.quietly(case("bert"))
    assert (row["status"], row["stage"]) == ("refused", "open")
    assert "bert: model_args don't fit" in coverage.line(row)
    assert "\n" not in coverage.line(row)
    assert coverage.share([row]) == 0.0
    assert "`bert` (transformers): open: bert: model_args" in coverage.markdown([row], {})


def test_convolutions_are_left_out_and_count_for_nothing(coverage, case):
    row = coverage.quietly(case("poolformer"))
    assert row["status"] == "left out"
    works = {**row, "status": "works", "name": "other"}
    assert coverage.share([row, works]) == 1.0
    assert "`poolformer`" in coverage.markdown([row, works], {}).partition("## Not tried")[2]


def test_every_architecture_of_timm_is_tried_or_left_out_with_a_reason(coverage):
    import _timm_cases

    kept = json.loads(_timm_cases.KEPT.read_text(encoding="utf-8"))
    if kept["timm"] != timm.__version__:
        pytest.skip("the kept list is another timm's; the benchmark looks anew")
    tried = {row["name"] for row in kept["tried"]}
    out = set(kept["left_out"])
    assert not tried & out
    for module in timm.list_modules():
        names = set(timm.list_models(module=module))
        if module in out:
            assert not names & (tried | out - {module})
        else:  # what is of neither has no linear map but the head
            assert names & (tried | out)
    told = {*tried, *out}
    assert {"swin_base_patch4_window7_224", "deit3_large_patch16_384", "volo_d5_512"} <= told


def test_the_table_in_the_docs_is_the_results(coverage):
    import _timm_cases

    file = ROOT / "benchmarks" / "results" / "coverage.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    text = (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert coverage.markdown(rows, json.loads(_timm_cases.KEPT.read_text())["left_out"]) == text
    assert {row["name"] for row in rows} == {case.name for case in coverage.cases()}
    assert coverage.share(rows) >= coverage.ENOUGH
    tried = [r for r in rows if r["library"] == "transformers" and r["status"] != "left out"]
    assert len(tried) >= 60


@pytest.mark.slow
def test_nearly_all_architectures_work(coverage):
    """An hour on one core."""
    rows = coverage.try_all(coverage.cases(), None)
    failing = [coverage.line(row) for row in rows if row["status"] in ("refused", "broken")]
    assert coverage.share(rows) >= coverage.ENOUGH, "\n".join(failing)
    assert not [row["name"] for row in rows if row["status"] == "broken"]
