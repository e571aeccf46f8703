"""The contract of the command line: what scripts may rely on."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file

import pelacli
from pelacli import console
from pelacli.cli.app import make_app

OPTIONS = Path(__file__).parent / "snapshots" / "options.json"
RECIPE = """
model = "vit_tiny_patch16_224"
weights = "random"
model_args = { img_size = 16, patch_size = 8, embed_dim = 32, depth = 2, num_heads = 2 }
num_classes = 2
output = "runs/tiny"
[data]
dataset = "images"
batch_size = 8
[teacher]
steps = 2
[decompose]
ratio = "0.7"
calibrate = "train"
samples = 16
[pretrain]
steps = 2
[finetune]
steps = 2
[eval]
"""
LAYER = {"name", "shape", "rank", "reason", "energy", "params", "flops"}
COUNT = {"before", "after"}


@pytest.fixture
def recipe(here, monkeypatch):
    monkeypatch.setattr("pelacli.steps.eval._SECONDS", 0.02)  # of timing
    generator = torch.Generator().manual_seed(0)
    for split, count in {"train": 12, "validation": 4}.items():
        for shade, name in enumerate(("dark", "light")):
            folder = here / "images" / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = torch.randint(0, 128, (16, 16, 3), generator=generator) + 127 * shade
                Image.fromarray(pixels.byte().numpy()).save(folder / f"{n}.png")
    path = here / "tiny.toml"
    path.write_text(RECIPE)
    return path


def document(answer):
    code, out, err = answer
    assert code == 0, err
    assert err == ""
    return json.loads(out)


def test_options_are_frozen():
    """Options may be added; set PELA_SNAPSHOT=1 to write the file anew."""

    def options(command):
        if hasattr(command, "commands"):
            return {name: options(child) for name, child in sorted(command.commands.items())}
        return sorted(name for p in command.params for name in [*p.opts, *p.secondary_opts])

    now = options(typer.main.get_command(make_app()))
    if os.environ.get("PELA_SNAPSHOT"):
        OPTIONS.write_text(json.dumps(now, indent=1) + "\n")
    frozen = json.loads(OPTIONS.read_text())

    def missing(old, new, where=""):
        if isinstance(old, list):
            return [f"{where} {name}" for name in old if name not in new]
        return [x for k in old for x in missing(old[k], new.get(k, {}), f"{where} {k}")]

    assert not missing(frozen, now)
    assert frozen == now, "an option was added: PELA_SNAPSHOT=1 pytest tests/cli/test_commands.py"


def test_decompose_json(pela, here):
    done = document(
        pela("decompose", "test_vit", "--weights", "random", "--ratio", "2/3", "-o", "a", "--json")
    )
    keys = {
        "artefact", "model", "policy", "params", "flops", "ratio", "energy", "seconds", "layers",
    }  # fmt: skip
    assert keys <= set(done)
    assert set(done["params"]) == set(done["flops"]) == COUNT
    assert done["ratio"] == done["params"]["after"] / done["params"]["before"] <= 2 / 3
    for layer in done["layers"]:
        assert set(layer) >= LAYER
        assert (layer["rank"] is None) == (layer["reason"] is not None)
    real = sum(p.numel() for p in pelacli.load(here / "a").parameters())
    assert done["params"]["after"] == real


def test_report_formats(pela, artefact):
    listed = document(pela("report", "a", "--json"))
    assert set(listed[0]) >= {"model", "params", "flops", "layers"}
    assert set(listed[0]["layers"][0]) >= LAYER
    rows = list(csv.DictReader(io.StringIO(pela("report", "a", "--format", "csv")[1])))
    assert len(rows) >= 4
    assert "| kind |" in pela("report", "a", "--format", "markdown")[1]
    by_layer = pela("report", "a", "--by", "layer")[1]
    assert all(layer["name"] in by_layer for layer in listed[0]["layers"])
    plain = document(pela("report", "test_vit", "--json"))[0]
    assert plain["params"]["before"] == plain["params"]["after"]
    assert plain["flops"]["before"] > 0


def test_report_alone_is_about_runs(pela, here):
    pela("decompose", "test_vit", "--weights", "random", "--ratio", "0.5")
    assert [m["model"] for m in document(pela("report", "--json"))] == ["runs/test_vit-r0.50"]


def test_pipeline_runs_skips_and_reruns(pela, recipe, here):
    done = document(pela("run", recipe, "--json"))
    steps = {step["step"]: step["skipped"] for step in done["steps"]}
    assert all(set(s) >= {"step", "artefact", "skipped", "seconds"} for s in done["steps"])
    assert done["eval"]["latency_ms"] > 0
    assert steps == dict.fromkeys(("teacher", "decompose", "pretrain", "finetune"), False)
    assert {"artefact", "metrics", "baseline", "drop", "agreement"} <= set(done["eval"])
    assert set(done["eval"]["metrics"]) >= {"accuracy"}
    again = document(pela("run", recipe, "--json"))
    assert all(step["skipped"] for step in again["steps"])
    code, out, err = pela("run", recipe, "--verbose")
    assert (code, out.count("done already")) == (0, 4)
    assert "teacher: done already" in err
    changed = document(pela("run", recipe, "--json", "--set", "pretrain.lr=0.01"))
    assert [step["skipped"] for step in changed["steps"]] == [True, True, False, False]

    code, _, err = pela("run", recipe, "--set", "eval.max_drop=-1000")
    assert (code, "accuracy drops by" in err) == (3, True)

    for command in (["pretrain"], ["finetune"], ["finetune", "--dense"]):
        found = document(pela(*command, recipe, "--json"))
        assert set(found) >= {"artefact", "steps", "metrics"}
        assert found["steps"] == 2
        assert (Path(found["artefact"]) / "metrics.jsonl").is_file()
    gate = ("eval", "runs/tiny", "--against", "runs/tiny/dense", "--no-latency", "--json")
    code, out, err = pela(*gate, "--max-drop", "-1000")
    assert code == 3
    assert set(json.loads(out)) >= {"metrics", "baseline", "drop", "agreement"}
    assert "accuracy drops by" in err
    assert pela(*gate, "--max-drop", "1000")[0] == 0


def test_an_unfinished_run_of_other_settings_is_not_mixed_in(pela, recipe, here):
    """Stopped after a checkpoint, as a kill would: then continued, refused, or forced."""
    from pelacli.train import checkpoint as train_checkpoint

    real, calls = train_checkpoint.prune, []

    def dies(*args):
        real(*args)
        calls.append(args)
        raise KeyboardInterrupt

    long = ("--set", "teacher.steps=4", "--set", "teacher.save_every=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_checkpoint, "prune", dies)
        assert pela("finetune", recipe, "--dense", *long)[0] == 130
    assert calls
    other = pela("finetune", recipe, "--dense", "--resume", *long, "--set", "teacher.lr=0.5")
    assert other[0] == 2
    assert "unfinished run of other settings" in other[2]
    resumed = pela("finetune", recipe, "--dense", "--resume", *long)
    assert resumed[0] == 0
    weights = (here / "runs/tiny/dense/model.safetensors").read_bytes()
    assert pela("finetune", recipe, "--dense", *long)[0] == 0
    assert (here / "runs/tiny/dense/model.safetensors").read_bytes() == weights


def test_flags_win_over_the_recipe(pela, recipe, here):
    pela("finetune", recipe, "--dense")
    done = document(pela("decompose", recipe, "--ratio", "0.9", "--policy", "uniform", "--json"))
    assert (done["requested"], done["policy"]) == ("0.9", "uniform")
    assert done["artefact"] == "runs/tiny/decompose"
    stored = json.loads((here / "runs/tiny/decompose/pela.json").read_text())
    assert stored["history"][-1]["recipe"]["decompose"]["ratio"] == "0.9"


def test_a_plan_edited_by_hand(pela, artefact, checkpoint, here):
    ask = ("decompose", checkpoint, "--arch", "test_vit", "--json")
    dry = document(pela(*ask, "--ratio", "0.6", "--dry-run"))
    assert dry["artefact"] is None
    assert not (here / "runs").exists()
    edited = next(layer for layer in dry["layers"] if layer["rank"])
    edited["rank"] = 5
    (here / "plan.json").write_text(json.dumps(dry))
    done = document(pela(*ask, "--plan", "plan.json", "-o", "b"))
    assert next(la for la in done["layers"] if la["name"] == edited["name"])["rank"] == 5
    assert load_file(here / "b/model.safetensors")[f"{edited['name']}.down.weight"].shape[0] == 5
    others = {la["name"]: la["rank"] for la in dry["layers"]}
    assert {la["name"]: la["rank"] for la in done["layers"]} == others


def test_pins_limits_and_patterns(pela, here):
    ask = ("decompose", "test_vit", "--weights", "random", "--ratio", "0.8", "--dry-run", "--json")
    done = document(
        pela(*ask, "--pin", "attn.proj=7", "--pin", r"blocks\.0\.=dense", "--exclude", "fc2",
             "--multiple", "4")
    )  # fmt: skip
    for layer in done["layers"]:
        if "fc2" in layer["name"]:
            assert layer["reason"] == "excluded"
        elif layer["name"].startswith("blocks.0."):
            assert layer["reason"] == "pinned dense"
        elif "attn.proj" in layer["name"]:
            assert layer["rank"] == 7
        elif layer["rank"] is not None:
            assert layer["rank"] % 4 == 0


def test_an_artefact_is_replaced_and_reloads_to_the_same_logits(pela, artefact, checkpoint):
    first = (artefact / "model.safetensors").read_bytes()
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        logits = pelacli.load(artefact)(x)
        assert torch.equal(pelacli.load(artefact)(x), logits)
    ask = ("decompose", checkpoint, "--arch", "test_vit", "-o", "a")
    assert pela(*ask, "--ratio", "0.6")[0] == 0
    assert (artefact / "model.safetensors").read_bytes() != first
    assert pela(*ask, "--ratio", "0.5")[0] == 0
    assert (artefact / "model.safetensors").read_bytes() == first
    assert [p.name for p in artefact.parent.iterdir()] == ["a"]


def test_debug_shows_the_traceback_and_nothing_else_does(pela, here):
    ask = ("decompose", "no_such_model", "--ratio", "0.5")
    assert "Traceback" not in pela(*ask)[2]
    assert "Traceback" in pela(*ask, "--debug")[2]


def test_output_has_no_colour_off_a_terminal(pela, artefact):
    assert "\x1b" not in pela("report", "a")[1]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("no_color", [None, "1"])
def test_talk_on_a_terminal_and_no_color(monkeypatch, no_color):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(console, "verbosity", console.Verbosity())
    console.warn("look")
    assert "note: look" in terminal.getvalue()
    assert ("\x1b[33m" in terminal.getvalue()) == (no_color is None)


@pytest.mark.parametrize(
    ("tty", "flags", "speaks"),
    [
        (True, {}, True),
        (False, {}, False),
        (False, {"verbose": True}, True),
        (True, {"quiet": True}, False),
        (True, {"quiet": True, "verbose": True}, False),
    ],
)
def test_who_hears_the_talk(monkeypatch, tty, flags, speaks):
    stream = Terminal() if tty else io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(console, "verbosity", console.Verbosity(**flags))
    console.info("so far so good")
    with console.progress("working") as bar:
        bar.advance(1, loss=0.5)
    assert bool(stream.getvalue()) == speaks


def test_figures_of_training_are_readable_at_80_columns(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(console, "verbosity", console.Verbosity())
    monkeypatch.setenv("COLUMNS", "80")
    figures = {
        "loss": 2.345678,
        "task": 2.1,
        "feature": 0.2456,
        "perturbation": 0.01,
        "lr": 1.25e-5,
    }
    with console.progress("pretrain", total=100) as bar:
        bar.advance(7, **figures, **{"samples/s": 1234.5, "best accuracy": 81.25})
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown)]
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("pretrain") and "7/100" in line and " left " in line
               for line in lines)  # fmt: skip
    words = " ".join(lines).replace("  ", " ")
    for figure in ("loss 2.346", "perturbation 0.01", "lr 1.25e-05", "best accuracy 81.25"):
        assert figure in words


def test_verbose_talks_and_leaves_the_data_alone(pela, here):
    ask = ("decompose", "test_vit", "--weights", "random", "--ratio", "0.5", "--dry-run", "--json")
    code, out, err = pela(*ask, "-v")
    assert code == 0
    assert json.loads(out)["artefact"] is None
    assert "no calibration samples" in err


def test_no_command_is_answered_with_help_and_no_error(pela):
    for args in ((), ("recipes",)):
        code, out, err = pela(*args)
        assert code == 2
        assert "Usage: " in out + err
        assert "error" not in err.lower()


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_artefact(pela, artefact, checkpoint, monkeypatch, failure):
    """The model card is the last file of an artefact, so all others are written by then."""
    before = {path.name: path.read_bytes() for path in artefact.iterdir()}

    def fails(record):
        raise failure

    monkeypatch.setattr("pelacli.artefact.card.model_card", fails)
    code, out, err = pela(
        "decompose", checkpoint, "--arch", "test_vit", "--ratio", "0.7", "-o", "a"
    )
    assert out == ""
    if isinstance(failure, OSError):
        assert (code, err) == (1, "pela: error: a: can't be written: No space left on device\n")
    else:
        assert (code, err) == (130, "pela: error: interrupted\n")
    assert {path.name: path.read_bytes() for path in artefact.iterdir()} == before
    assert [path.name for path in artefact.parent.iterdir()] == ["a"]


def test_eval_json(pela, artefact, monkeypatch):
    monkeypatch.setattr("pelacli.steps.eval._SECONDS", 0.02)
    keys = {"artefact", "params", "flops", "metrics", "latency_ms"}
    alone = document(pela("eval", "a", "--json"))
    assert set(alone) == keys
    assert alone["latency_ms"] > 0
    both = document(pela("eval", "a", "test_vit", "--weights", "random", "--no-latency", "--json"))
    assert [one["artefact"] for one in both] == ["a", "test_vit"]
    assert both[0]["params"] < both[1]["params"]
    assert pela("eval", "a", "--no-latency")[1].count("parameters") == 1


def test_report_by_whole_has_a_line_per_model(pela, artefact):
    rows = list(
        csv.DictReader(
            io.StringIO(pela("report", "a", "test_vit", "--by", "whole", "--format", "csv")[1])
        )
    )
    assert len(rows) == 2
    assert "a" in pela("report", "a", "--by", "whole")[1]
    assert json.loads(pela("report", ".", "--json")[1])[0]["model"] == "a"  # what is below


def test_recipes_list_show_copy_check(pela, here):
    listed = document(pela("recipes", "list", "--json"))
    names = {row["name"] for row in listed}
    assert {"quickstart", "vit_base", "imagenet/deit_base"} <= names
    assert all(row["about"] for row in listed)
    code, out, err = pela("recipes", "list")
    assert (code, err) == (0, "")
    assert all(name in out for name in names)

    text = pela("recipes", "show", "quickstart")[1]
    assert tomllib.loads(text)["data"]["dataset"] == "digits"
    assert pela("recipes", "copy", "quickstart")[:2] == (0, "quickstart.toml\n")
    assert pela("recipes", "copy", "quickstart.toml", "mine.toml")[:2] == (0, "mine.toml\n")
    assert (here / "quickstart.toml").read_text() == (here / "mine.toml").read_text() == text

    assert pela("recipes", "check", "mine.toml") == (0, "mine.toml: ok\n", "")
    asked = document(pela("recipes", "check", "mine.toml", "--json", "--set", "pretrain.epochs=5"))
    assert asked["pretrain"]["epochs"] == 5
    assert asked["decompose"]["ratio"] == "1/2"
    assert "properties" in document(pela("recipes", "schema"))


def test_the_version_and_python_dash_m(pela):
    assert pela("--version")[1] == f"pela {pelacli.__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "pelacli", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"pela {pelacli.__version__}\n")


def test_api(here):
    import timm

    model = timm.create_model("test_vit").eval()
    dense = sum(p.numel() for p in model.parameters())
    batches = [torch.randn(8, 3, 160, 160)]
    plan = pelacli.plan(model, ratio="0.6", batches=batches)
    assert sum(p.numel() for p in model.parameters()) == dense
    assert pelacli.decompose(model, ratio=0.6, batches=batches).ranks() == plan.ranks()
    pelacli.save(model, "saved")
    again = pelacli.load("saved")
    with torch.no_grad():
        assert torch.equal(again(batches[0]), model(batches[0]))
    assert sum(p.numel() for p in again.parameters()) <= 0.6 * dense


def test_api_takes_any_module():
    net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 32))
    before = sum(p.numel() for p in net.parameters())
    plan = pelacli.decompose(net, ratio="1/2", policy="uniform")
    assert set(plan.ranks()) == {"0", "2"}
    assert sum(p.numel() for p in net.parameters()) <= before / 2
    with pytest.raises(pelacli.api.RequestError, match="can't be rebuilt"):
        pelacli.save(net, "nowhere")


@pytest.mark.parametrize("command", ["pretrain", "finetune", "run"])
def test_training_has_huge_pages_unless_told(pela, here, monkeypatch, command):
    for given, wanted in (({}, "1"), ({"THP_MEM_ALLOC_ENABLE": "0"}, "0")):
        environment = dict(os.environ, **given)
        monkeypatch.setattr(os, "environ", environment)
        pela(command, "r.toml", "--set", "seed=1")
        assert environment["THP_MEM_ALLOC_ENABLE"] == wanted
