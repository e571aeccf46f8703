"""Every option of every command acts, or is refused with the reason where it can't.

The tables below hold a case for each option. One that is added to the command line and to no table
fails `test_every_option_has_a_case`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fake_hub
import pytest
import typer
from PIL import Image
from pretended_timing import LowRankTakesLonger, pretended_layer_times
from refusals import refused as refused

from pelacli.cli.app import make_app

RECIPE = """
model = "vit_tiny_patch16_224"
weights = "random"
model_args = { img_size = 16, patch_size = 8, embed_dim = 32, depth = 2, num_heads = 2 }
num_classes = 2
output = "runs/tiny"
[data]
dataset = "images"
batch_size = 4
[teacher]
steps = 1
[decompose]
ratio = "0.7"
[pretrain]
steps = 1
lr = 1e-3
[finetune]
steps = 1
[eval]
latency = false
"""
TINY = (
    "decompose", "vit_tiny_patch16_224", "--weights", "random", "--dry-run", "--json",
    "--set", "model_args={img_size=16,patch_size=8,embed_dim=32,depth=2,num_heads=2}",
    "--set", "num_classes=2",
)  # fmt: skip
PLAN = ("decompose", "a", "--dry-run", "--json")  # of stored spectra
EVAL = ("eval", "small", "--no-latency", "--json")

# command → option → two command lines whose results differ by the option alone
ACTS: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "decompose": {
        "model": (("decompose", "a", "--ratio", "0.8", "--dry-run", "--json"),
                  ("decompose", "b", "--ratio", "0.8", "--dry-run", "--json")),
        "--ratio": ((*PLAN, "--ratio", "0.8"), (*PLAN, "--ratio", "0.6")),
        "--unit": ((*PLAN, "--ratio", "0.8"), (*PLAN, "--ratio", "0.8", "--unit", "flops")),
        "--scope": ((*PLAN, "--ratio", "0.8"), (*PLAN, "--ratio", "0.8", "--scope", "layers")),
        "--energy": ((*PLAN, "--energy", "0.9"), (*PLAN, "--energy", "0.6")),
        "--policy": ((*PLAN, "--ratio", "0.8"), (*PLAN, "--ratio", "0.8", "--policy", "uniform")),
        "--threshold": ((*PLAN, "--threshold", "0.9"), (*PLAN, "--threshold", "0.6")),
        "--pin": ((*PLAN, "--ratio", "0.8"), (*PLAN, "--ratio", "0.8", "--pin", "qkv=3")),
        "--min-rank": ((*PLAN, "--ratio", "0.5"), (*PLAN, "--ratio", "0.5", "--min-rank", "20")),
        "--max-rank": ((*PLAN, "--ratio", "0.8"), (*PLAN, "--ratio", "0.8", "--max-rank", "9")),
        "--multiple": ((*PLAN, "--ratio", "0.8"), (*PLAN, "--ratio", "0.8", "--multiple", "7")),
        "--form": ((*PLAN, "--ratio", "0.8"), (*PLAN, "--ratio", "0.8", "--form", "factors")),
        "--plan": ((*PLAN, "--ratio", "0.8"), (*PLAN, "--plan", "plan.json")),
        "--set": ((*PLAN, "--ratio", "0.8"),
                  (*PLAN, "--ratio", "0.8", "--set", "decompose.max_rank=9")),
        "--dry-run": ((*PLAN, "--ratio", "0.8"), ("decompose", "a", "--ratio", "0.8", "--json")),
        "--json": ((*PLAN, "--ratio", "0.8"), ("decompose", "a", "--ratio", "0.8", "--dry-run")),
        "--include": ((*TINY, "--ratio", "0.8"), (*TINY, "--ratio", "0.8", "--include", "qkv")),
        "--exclude": ((*TINY, "--ratio", "0.8"), (*TINY, "--ratio", "0.8", "--exclude", "qkv")),
        "--seed": ((*TINY, "--ratio", "0.8"), (*TINY, "--ratio", "0.8", "--seed", "5")),
        "--device": ((*TINY, "--ratio", "0.8"), (*TINY, "--ratio", "0.8", "--device", "nonesuch")),
        "--calibrate": ((*TINY, "--ratio", "0.8"),
                        (*TINY, "--ratio", "0.8", "--calibrate", "images")),
        "--samples": ((*TINY, "--ratio", "0.8", "--calibrate", "images"),
                      (*TINY, "--ratio", "0.8", "--calibrate", "images", "--samples", "2")),
        "--max-drop": ((*TINY, "--max-drop", "100", "--data", "images"),
                       (*TINY, "--max-drop", "3", "--data", "images", "--task", "unlabelled")),
        "--data": ((*TINY, "--max-drop", "100", "--data", "images"),
                   (*TINY, "--max-drop", "100", "--data", "digits", "--set", "num_classes=10")),
        "--split": ((*TINY, "--max-drop", "60", "--data", "images"),
                    (*TINY, "--max-drop", "60", "--data", "images", "--split", "test")),
        "--task": ((*TINY, "--max-drop", "100", "--data", "images"),
                   (*TINY, "--max-drop", "100", "--data", "images", "--task", "unlabelled")),
        "--weights": (("decompose", "test_vit", "--weights", "vit.safetensors", "--ratio", "0.8",
                       "--dry-run", "--json"),
                      ("decompose", "test_vit", "--weights", "random", "--ratio", "0.8",
                       "--dry-run", "--json")),
        "--arch": (("decompose", "vit.safetensors", "--ratio", "0.8", "--dry-run", "--json"),
                   ("decompose", "vit.safetensors", "--arch", "test_vit", "--ratio", "0.8",
                    "--dry-run", "--json")),
    },
    "eval": {
        "artefacts": (EVAL, ("eval", "a", "--no-latency", "--json")),
        "--against": (EVAL, (*EVAL, "--against", "a")),
        "--data": (EVAL, (*EVAL, "--data", "images")),
        "--split": ((*EVAL, "--data", "images"), (*EVAL, "--data", "images", "--split", "train")),
        "--task": ((*EVAL, "--data", "images"),
                   (*EVAL, "--data", "images", "--task", "unlabelled")),
        "--max-drop": ((*EVAL, "--data", "images", "--against", "small"),
                       (*EVAL, "--data", "images", "--against", "small", "--max-drop", "-1")),
        "--batch-size": ((*EVAL, "--data", "images"),
                         (*EVAL, "--data", "images", "--batch-size", "0")),
        "--latency": (EVAL, ("eval", "small", "--latency", "--json")),
        "--weights": (("eval", "small", "--against", "test_vit", "--no-latency"),
                      ("eval", "small", "--against", "test_vit", "--no-latency",
                       "--weights", "random")),
        "--arch": (("eval", "vit.safetensors", "--no-latency"),
                   ("eval", "vit.safetensors", "--no-latency", "--arch", "test_vit")),
        "--set": (("eval", "eval.toml"), ("eval", "eval.toml", "--set", "eval.split=train")),
        "--json": (EVAL, ("eval", "small", "--no-latency")),
        "--format": (EVAL[:-1], (*EVAL[:-1], "--format", "markdown")),
    },
    "report": {
        "models": (("report", "a"), ("report", "small")),
        "--by": (("report", "a"), ("report", "a", "--by", "layer")),
        "--sweep": (("report", "a"), ("report", "a", "--sweep", "0.9,0.5")),
        "--scope": (("report", "a", "--sweep", "0.9,0.5"),
                    ("report", "a", "--sweep", "0.9,0.5", "--scope", "layers")),
        "--policy": (("report", "a", "--sweep", "0.9,0.5"),
                     ("report", "a", "--sweep", "0.9,0.5", "--policy", "uniform")),
        "--unit": (("report", "a", "--sweep", "0.9,0.5"),
                   ("report", "a", "--sweep", "0.9,0.5", "--unit", "flops")),
        "--form": (("report", "a", "--sweep", "0.9,0.5"),
                   ("report", "a", "--sweep", "0.9,0.5", "--form", "pivots")),
        "--curves": (("report", "course.jsonl", "a"), ("report", "course.jsonl", "--curves")),
        "--format": (("report", "a"), ("report", "a", "--format", "csv")),
        "--arch": (("report", "vit.safetensors"),
                   ("report", "vit.safetensors", "--arch", "test_vit")),
        "--json": (("report", "a"), ("report", "a", "--json")),
    },
    "recipes list": {"--json": (("recipes", "list"), ("recipes", "list", "--json"))},
    "recipes show": {"name": (("recipes", "show", "quickstart"), ("recipes", "show", "vit_base"))},
    "recipes copy": {
        "name": (("recipes", "copy", "quickstart"), ("recipes", "copy", "vit_base")),
        "target": (("recipes", "copy", "quickstart"), ("recipes", "copy", "quickstart", "x.toml")),
    },
    "recipes check": {
        "recipe": (("recipes", "check", "eval.toml"), ("recipes", "check", "none.toml")),
        "--set": (("recipes", "check", "eval.toml", "--json"),
                  ("recipes", "check", "eval.toml", "--json", "--set", "seed=3")),
        "--json": (("recipes", "check", "eval.toml"), ("recipes", "check", "eval.toml", "--json")),
    },
    "recipes schema": {},
}  # fmt: skip

# These write an artefact or need a trained one: what they do is seen in the test that is named.
ELSEWHERE: dict[str, dict[str, str]] = {
    "decompose": {
        "--correct": "test_correction_is_left_out_where_the_flag_says_so",
        "--blockwise": "test_block_by_block_what_is_done_lies_beside_the_output_meanwhile",
        "--output": "test_output_and_spectra_are_written_where_they_are_asked_for",
        "--spectra": "test_output_and_spectra_are_written_where_they_are_asked_for",
        "--batch-size": "test_the_options_of_planning_by_time_act",
        "--precision": "test_the_options_of_planning_by_time_act",
        "--compile": "test_the_options_of_planning_by_time_act",
    },
    "heal": dict.fromkeys(
        ("recipe", "--resume", "--set", "--json"), "test_the_options_of_training_act"
    ),
    "pretrain": dict.fromkeys(
        ("recipe", "--resume", "--set", "--json"), "test_the_options_of_training_act"
    ),
    "finetune": dict.fromkeys(
        ("recipe", "--dense", "--resume", "--set", "--json"), "test_the_options_of_training_act"
    ),
    "report": dict.fromkeys(
        ("--latency", "--device", "--batch-size", "--precision", "--compile"),
        "test_the_options_of_timing_act",
    )
    | {"--html": "test_a_page_is_written_where_it_is_asked_for"},
    "export": dict.fromkeys(
        (
            "artefact",
            "--to",
            "--output",
            "--precision",
            "--opset",
            "--data",
            "--tolerance",
            "--json",
        ),
        "test_the_options_of_export_act",
    ),
    "import": dict.fromkeys(
        ("checkpoint", "--model", "--output", "--json"), "test_the_options_of_import_act"
    ),
    "push": dict.fromkeys(
        ("artefact", "repo", "--private", "--revision", "--json"), "test_the_options_of_push_act"
    ),
    "verify": dict.fromkeys(("artefacts", "--json"), "test_the_options_of_verify_act"),
    "run": dict.fromkeys(
        ("recipe", "--force", "--set", "--json"), "test_the_options_of_training_act"
    ),
}
COMMON = {"--verbose", "--quiet", "--debug"}  # test_the_common_options_act


def options_of(command: Any, path: str = "") -> dict[str, set[str]]:
    """Command → its options, each by its first long name; an argument by its own."""
    if hasattr(command, "commands"):
        found: dict[str, set[str]] = {}
        for name, child in command.commands.items():
            found |= options_of(child, f"{path} {name}".strip())
        return found
    return {path: {max(p.opts, key=lambda name: name.startswith("--")) for p in command.params}}


def test_every_option_has_a_case():
    for command, options in options_of(typer.main.get_command(make_app())).items():
        cases = set(ACTS.get(command, {})) | set(ELSEWHERE.get(command, {})) | COMMON
        assert options == cases, command
    for tests in ELSEWHERE.values():
        assert set(tests.values()) <= set(globals())


def test_a_page_is_written_where_it_is_asked_for(pela, artefact):
    assert pela("report", "a", "--html", "page.html")[0] == 0
    assert "<!DOCTYPE html>" in (artefact.parent / "page.html").read_text()


def test_the_options_of_push_act(pela, artefact, tmp_path, monkeypatch):
    with fake_hub.in_this_process(tmp_path / "hub", monkeypatch):
        assert pela("push", "a", "me/first")[0] == 0
        code, out, err = pela("push", "a", "me/b", "--private", "--revision", "v2", "--json")
        assert code == 0, err
        done = json.loads(out)
    assert (done["repo"], done["revision"], done["private"]) == ("me/b", "v2", True)
    there = {path.parent.name for path in (tmp_path / "hub/me").glob("*/pela.json")}
    assert there == {"first", "b@v2"}


def test_the_options_of_verify_act(pela, artefact):
    assert json.loads(pela("verify", "a", "--json")[1])[0]["artefact"] == "a"
    assert pela("verify", "b")[0] == 2


@pytest.fixture(scope="module")
def world(tmp_path_factory, decomposed, checkpoint) -> Path:
    """A directory with what the cases name: artefacts a, b and small, a dense file, and data."""
    import shutil

    from pelacli.cli import requests
    from pelacli.steps import decompose

    root = tmp_path_factory.mktemp("world")
    shutil.copytree(decomposed, root / "a")
    shutil.copy(checkpoint, root / "vit.safetensors")
    for split in ("train", "validation"):
        for shade, name in enumerate(("dark", "light")):
            (root / "images" / split / name).mkdir(parents=True)
            for n in range(4 if split == "train" else 3):
                image = Image.new("RGB", (16, 16), (90 * shade + 20 * n, 9 * n, 200 - 60 * shade))
                image.save(root / "images" / split / name / f"{n}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        sets = [TINY[TINY.index("--set") + 1], "num_classes=2"]
        for name, seed in (("small", 0), ("b", 1)):
            top = {"weights": "random", "seed": seed}
            step = requests.decompose(TINY[1], top, {"ratio": "0.7"}, sets, Path(name))
            decompose.run(step)
    layers = json.loads((root / "a" / "pela.json").read_text())["layers"]
    plan = [la | ({"rank": 5} if la["rank"] else {}) for la in layers]
    (root / "plan.json").write_text(json.dumps({"layers": plan}))
    (root / "eval.toml").write_text(
        'model = "small"\noutput = "r"\n[data]\ndataset = "images"\n[eval]\nlatency = false\n'
    )
    line = {"step": 1, "epoch": 1.0, "loss": 0.5}
    (root / "course.jsonl").write_text(json.dumps(line) + "\n")
    return root


@pytest.fixture
def there(world, monkeypatch) -> Path:
    monkeypatch.setattr("pelacli.steps.latency.SECONDS", 0.01)
    monkeypatch.chdir(world)
    return world


def outcome(pela: Callable[..., tuple[int, str, str]], args: tuple[str, ...]) -> Any:
    code, out, err = pela(*args)
    assert "(unexpected" not in err
    try:
        document = json.loads(out)
    except ValueError:
        document = [line for line in out.splitlines() if " parameters (ratio " not in line]
    return code, without_seconds(document), err


def without_seconds(document: Any) -> Any:
    if isinstance(document, dict):
        return {k: without_seconds(value) for k, value in document.items() if k != "seconds"}
    return [without_seconds(item) for item in document] if isinstance(document, list) else document


CASES = [(command, name) for command, table in ACTS.items() for name in table]


@pytest.mark.parametrize(("command", "option"), CASES, ids=[" ".join(case) for case in CASES])
def test_an_option_changes_what_comes_out(pela, there, monkeypatch, tmp_path, command, option):
    if command == "recipes copy":
        monkeypatch.chdir(tmp_path)
    without, with_it = ACTS[command][option]
    first = outcome(pela, without)
    assert first != outcome(pela, with_it)
    if command != "recipes copy":
        assert first == outcome(pela, without)  # it is the option that changes it


def test_the_options_of_export_act(pela, there, tmp_path):
    def dense(name: str, *more: str) -> dict[str, Any]:
        args = ("export", "small", "--to", "dense", "-o", tmp_path / name, "--json", *more)
        code, out, err = pela(*args)
        assert code == 0, err
        return json.loads(out)

    plain, half, images = (
        dense("x"),
        dense("y", "--precision", "bf16"),
        dense("z", "--data", "images"),
    )
    assert plain["path"] == str(tmp_path / "x")
    assert (tmp_path / "x" / "config.json").is_file()
    assert (plain["precision"], half["precision"]) == ("fp32", "bf16")
    assert half["bytes"] < plain["bytes"]
    assert [batch["inputs"] for batch in images["batches"]] == [
        {"pixel_values": [size, 3, 16, 16]} for size in (3, 1)
    ]
    assert images["batches"] != plain["batches"]  # of the same shape, with another difference
    assert pela("export", "a", "--to", "dense", "-o", tmp_path / "w")[1].endswith(" s\n")
    strict = ("--tolerance", "1e-15")
    assert "--tolerance" in pela("export", "small", "--to", "dense", "-o", "s", *strict)[2]
    for more in (("--to", "torch"), ("--to", "dense", "--opset", "20")):
        assert pela("export", "small", *more, "-o", tmp_path / "v")[0] == 2


def test_the_options_of_import_act(pela, there, tmp_path):
    """They are all needed: what they do is in tests/artefact/test_import.py."""
    args = {"checkpoint": ("vit.safetensors",), "--model": ("--model", "test_vit"),
            "--output": ("-o", tmp_path / "x")}  # fmt: skip
    for left_out in args:
        given = [word for name, words in args.items() if name != left_out for word in words]
        code, _, err = pela("import", *given, "--json")
        assert code == 2
        assert "Missing" in err
    code, _, err = pela("import", *[word for words in args.values() for word in words])
    assert (code, "no layer of the model is a pair" in err) == (2, True)


def test_correction_is_left_out_where_the_flag_says_so(pela, there, tmp_path):
    ask = [part for part in TINY if part != "--dry-run"]
    written = []
    for name, flag in (("x", "--correct"), ("y", "--no-correct")):
        place = str(tmp_path / name)
        code, _, err = pela(*ask, "--ratio", "0.6", "--calibrate", "images", flag, "-o", place)
        assert code == 0, err
        written.append((tmp_path / name / "model.safetensors").read_bytes())
    assert written[0] != written[1]


def test_block_by_block_what_is_done_lies_beside_the_output_meanwhile(
    pela, there, tmp_path, monkeypatch
):
    """The result is the same, and so the folder tells: tests/cli/test_blockwise.py has the rest."""
    from pelacli.steps import blockwise

    made = []
    resumable = blockwise._resumable
    monkeypatch.setattr(
        blockwise, "_resumable", lambda folder, ask: made.append(folder) or resumable(folder, ask)
    )
    ask = [part for part in TINY if part != "--dry-run"]
    for flag in ("--no-blockwise", "--blockwise"):
        place = tmp_path / flag
        code, _, err = pela(*ask, "--ratio", "0.6", "--calibrate", "images", flag, "-o", place)
        assert code == 0, err
    assert made == [tmp_path / "--blockwise.factorising"]


def test_output_and_spectra_are_written_where_they_are_asked_for(pela, there, tmp_path):
    ask = [part for part in TINY if part != "--dry-run"]
    place, spectra = tmp_path / "x", tmp_path / "s"
    assert pela(*ask, "--ratio", "0.6", "-o", place, "--spectra", spectra)[0] == 0
    assert (place / "pela.json").is_file()
    assert pela("decompose", spectra, "--ratio", "0.5", "--dry-run")[0] == 0


def test_the_options_of_training_act(pela, world, here, monkeypatch):
    """``--resume`` goes on from checkpoints: tests/cli/test_training.py stops a run for that."""
    (here / "r.toml").write_text(RECIPE)
    (here / "images").symlink_to(world / "images")
    first = json.loads(pela("run", "r.toml", "--json")[1])
    assert [step["skipped"] for step in first["steps"]] == [False] * 4
    again = json.loads(pela("run", "r.toml", "--json", "--force")[1])
    assert [step["skipped"] for step in again["steps"]] == [False] * 4
    assert "done already" in pela("run", "r.toml")[1]
    for command, key, folder in (
        (("heal",), "pretrain", "pretrain"),
        (("finetune",), "finetune", "finetune"),
        (("finetune", "--dense"), "teacher", "dense"),
    ):
        sets = ("--set", f"{key}.steps=2", "--set", f"{key}.epochs=9")
        done = json.loads(pela(*command, "r.toml", "--resume", *sets, "--json")[1])
        assert (done["steps"], Path(done["artefact"]).name) == (2, folder)
        assert "artefact" in pela(*command, "r.toml")[1]


def test_the_options_of_timing_act(pela, there, monkeypatch):
    """No time is measured: tests/cli/test_report_latency.py has the rest."""
    monkeypatch.setattr("pelacli.measure.latency.side_by_side", LowRankTakesLonger())
    monkeypatch.setattr("pelacli.steps.latency.compiled_blocks", lambda *_, on: nullcontext())
    assert "latency" not in json.loads(pela("report", "small", "--json")[1])[0]
    for flags, key, value in (
        (("--batch-size", "3"), "batch_size", 3),
        (("--device", "cpu"), "device", "cpu"),
        (("--precision", "bf16"), "precision", "bf16"),
        (("--compile",), "compile", True),
    ):
        code, out, err = pela("report", "small", "--latency", "--json", *flags)
        assert code == 0, err
        assert json.loads(out)[0]["latency"][0][key] == value
    assert pela("report", "small", "--latency", "--device", "nonesuch")[0] == 2


def test_the_options_of_planning_by_time_act(pela, there, monkeypatch, tmp_path):
    """No time is measured: tests/cli/test_unit_latency.py has the rest."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("pelacli.measure.latency.side_by_side", LowRankTakesLonger())
    monkeypatch.setattr("pelacli.measure.layer_times.measure", pretended_layer_times)
    monkeypatch.setattr("pelacli.steps.latency.compiled_blocks", lambda *_, on: nullcontext())
    for flags, key, value in (
        (("--batch-size", "3"), "batch_size", 3),
        (("--precision", "bf16"), "precision", "bf16"),
        (("--compile",), "compile", True),
    ):
        code, out, err = pela(*TINY, "--unit", "latency", "--ratio", "0.99", *flags)
        assert code == 0, err
        assert json.loads(out)["latency_ms"][key] == value


def test_the_common_options_act(pela, there):
    ask = ("decompose", "test_vit", "--weights", "random", "--ratio", "0.5", "--dry-run", "--json")
    said = pela(*ask)[2]
    assert "no calibration samples" in said
    assert pela(*ask, "--quiet")[2] == ""
    assert len(pela(*ask, "--verbose")[2]) > len(said)
    assert "Traceback" in pela("report", "no_such_model", "--debug")[2]
    code, _, err = pela(*ask, "--quiet", "--verbose")
    assert (code, "contradict each other" in err) == (2, True)


MODEL = ("decompose", "test_vit", "--weights", "random", "--ratio", "0.5")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        # an artefact, a recipe, stored spectra: none of them is opened by these
        (("eval", "a", "--set", "data.batch_size=8"), "--set data.batch_size=8: changes a recipe"),
        (("eval", "a", "--set", "nonsense"), "--set nonsense: changes a recipe, and a is none"),
        (("eval", "a", "--weights", "random"), "--weights random: artefacts and files hold"),
        (("eval", "a", "--arch", "test_vit"), "--arch test_vit: is for a bare safetensors file"),
        (("eval", "eval.toml", "--weights", "random"), "--weights random: a recipe says"),
        (("eval", "eval.toml", "--arch", "test_vit"), "--arch test_vit: is for a bare"),
        (("eval", "test_vit", "--weights", "random", "--arch", "test_vit"), "--arch test_vit: is"),
        (("eval", "vit.safetensors", "--arch", "test_vit", "--weights", "random"), "--weights ran"),
        (("report", "a", "--device", "cpu"), "--device cpu: belongs to --latency"),
        (("report", "a", "--batch-size", "8"), "--batch-size 8: belongs to --latency"),
        (("report", "a", "--precision", "bf16"), "--precision bf16: belongs to --latency"),
        (("report", "a", "--compile"), "--compile: belongs to --latency"),
        (("report", "a", "--latency", "--by", "layer"), "--by layer: --latency has rows"),
        (("report", "a", "--latency", "--curves"), "--curves and --latency are two reports"),
        (("report", "a", "--latency", "--sweep", "0.5"), "--sweep and --latency are two reports"),
        (("report", "a", "--latency", "--arch", "test_vit"), "--arch test_vit: is for a bare"),
        (("eval", "a", "--split", "train"), "--split train: a has no data of its own"),
        (("eval", "a", "--task", "unlabelled"), "--task unlabelled: a has no data of its own"),
        (("eval", "a", "--batch-size", "8"), "--batch-size 8: a has no data of its own"),
        (("eval", "a", "--max-drop", "1"), "--max-drop needs --against"),
        (("eval", "eval.toml", "--set", "decompose.ratio=0.3"), "does not read [decompose]"),
        (("decompose", "vit.safetensors", "--arch", "test_vit", "--weights", "random", "--ratio",
          "0.5"), "vit.safetensors: holds weights"),
        ((*MODEL, "--arch", "test_vit"), "--arch test_vit: is for a bare safetensors file"),
        ((*MODEL, "--samples", "9"), "--samples: is about calibrate"),
        ((*MODEL, "--no-correct"), "--correct: is about calibrate"),
        ((*MODEL, "--correct"), "--correct: needs samples"),
        ((*MODEL, "--blockwise"), "--blockwise: is about calibrate"),
        ((*MODEL, "--threshold", "0.9", "--policy", "energy"), "--threshold: belongs to policy"),
        ((*MODEL, "--plan", "plan.json"), "--ratio: chooses ranks, and plan brings them along"),
        ((*MODEL[:4], "--plan", "plan.json", "--max-rank", "3"), "--max-rank: chooses ranks"),
        ((*MODEL[:4], "--plan", "plan.json", "--form", "auto"), "--form: chooses ranks"),
        ((*MODEL, "--form", "pivot"), "--form: 'pivot' is none of auto, factors, pivots"),
        ((*MODEL[:4], "--threshold", "0.9", "--unit", "flops"), "--unit: says what a ratio counts"),
        ((*MODEL, "--data", "images"), "--data: is what max_drop measures on"),
        ((*MODEL, "--split", "train"), "--split: is what max_drop measures on"),
        ((*MODEL, "--task", "unlabelled"), "--task: is what max_drop measures on"),
        ((*MODEL, "--set", "pretrain.epochs=5"), "`pela decompose` does not read [pretrain]"),
        ((*MODEL, "--set", "data.dataset=images"), "is read with --calibrate train or --max-drop"),
        ((*MODEL, "--set", "task=vqa"), "--set task=vqa: is of use with --calibrate or --max-drop"),
        ((*PLAN, "--ratio", "0.5", "--device", "cpu"), "leave --device out"),
        ((*MODEL, "--set", "model=vit_base"), "--set model=vit_base: MODEL is test_vit"),
        ((*PLAN, "--ratio", "0.5", "-o", "x"), "--output x: a/spectra.safetensors holds spectra"),
        ((*PLAN, "--ratio", "0.5", "--spectra", "x"), "leave --spectra out"),
        ((*PLAN, "--ratio", "0.5", "--seed", "1"), "leave --seed out"),
        ((*PLAN, "--ratio", "0.5", "--set", "seed=1"), "--set seed=1: a plan from stored spectra"),
        ((*PLAN, "--ratio", "0.5", "--samples", "9"), "stored spectra can't tell what samples"),
        (("decompose", "dense.toml", "--weights", "random"), "small is an artefact, which says"),
        (("decompose", "dense.toml", "--set", "model_args={x=1}"), "leave model_args out"),
        (("pretrain", "eval.toml", "--set", "finetune.lr=1"), "does not read [finetune]"),
        (("finetune", "eval.toml", "--set", "teacher.lr=1"), "`pela finetune --dense`"),
        (("report", "a", "--by", "layer", "--json"), "JSON holds layers and kinds alike"),
        (("report", "a", "--by", "layer", "--sweep", "0.9,0.5"), "--sweep has rows of its own"),
        (("report", "a", "--by", "layer", "--curves"), "--curves has rows of its own"),
        (("report", "a", "--json", "--format", "csv"), "--json and --format csv are two formats"),
        (("report", "a", "--arch", "test_vit"), "--arch test_vit: is for a bare safetensors file"),
        (("report", "a", "--arch", "test_vit", "--sweep", "0.9,0.5"), "--sweep builds no model"),
        (("report", "a", "--scope", "layers"), "belongs to --sweep"),
        (("report", "a", "--sweep", "0.9,0.5", "--curves"), "are two reports"),
    ],
)  # fmt: skip
def test_an_option_that_could_do_nothing_is_refused(refused, here, world, args, says):
    for path in world.iterdir():
        (here / path.name).symlink_to(path)
    (here / "dense.toml").write_text('model = "small"\noutput = "r"\n[decompose]\n')
    assert says in refused(*args)
