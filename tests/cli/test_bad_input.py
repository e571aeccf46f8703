"""Bad input: one line that names the thing and the remedy, the right exit code, no traceback, and
every existing file as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from older_artefacts import forget_digests
from PIL import Image
from refusals import refused as refused
from safetensors.torch import load_file, save_file

from pelacli.errors import RequestError
from pelacli.recipe import flags

HALF = ("--ratio", "0.5")
RANDOM = ("decompose", "test_vit", "--weights", "random")
QKV = "blocks.0.attn.qkv.weight"


@pytest.mark.parametrize(
    ("ratio", "says"),
    [
        ("0", "above 0 and at most 1"),
        ("2", "above 0 and at most 1"),
        ("-1", "above 0 and at most 1"),
        ("abc", "give a decimal or a fraction"),
        ("1/0", "give a decimal or a fraction"),
        ("0.01", "the smallest possible is 0.3525, because head (17.5 % of the parameters)"),
    ],
)
def test_a_ratio_that_is_none_or_can_not_be_met_is_refused(refused, ratio, says):
    assert says in refused(*RANDOM, "--ratio", ratio)


def test_the_nearest_ratio_that_is_named_works(pela, here):
    assert pela(*RANDOM, "--ratio", "0.3525", "--dry-run")[0] == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["decompose", "vit_bse", *HALF], "did you mean vit_base"),
        (["decompose", "qqqqqqqq", *HALF], "unknown model"),
        (["decompose", "./nodir", *HALF], "no such file or directory"),
        (["decompose", "no.safetensors/x.safetensors", *HALF], "no such file or directory"),
        (["decompose", "test_vit"], "needs --ratio"),
        (["decompose", "test_vit", "--weights", "nope", *HALF], "--weights nope"),
        (["decompose", "test_vit", "--ratoi", "1"], "No such option: --ratoi"),
        (["decompse", "test_vit"], "No such command"),
        ([*RANDOM, *HALF, "--exclude", "zzz"], "--exclude 'zzz': matches no module"),
        ([*RANDOM, *HALF, "--include", "("], "is no regular expression"),
        ([*RANDOM, *HALF, "--pin", "qkv=x"], "--pin qkv=x: give REGEX=RANK"),
        ([*RANDOM, *HALF, "--pin", "zzz=3"], "'zzz': matches no layer"),
        ([*RANDOM, *HALF, "--pin", "qkv=999"], "rank 999 is not between 0 and 64"),
        ([*RANDOM, *HALF, "--policy", "best"], "none of energy, uniform, threshold"),
        ([*RANDOM, *HALF, "--calibrate", "nope"], "unknown dataset 'nope'"),
        ([*RANDOM, *HALF, "--calibrate", "train"], "add [data]"),
        ([*RANDOM, *HALF, "--correct"], "needs samples"),
        ([*RANDOM, *HALF, "--set", "decompose.polcy=1"], "did you mean 'policy'"),
        ([*RANDOM, "--plan", "none.json"], "none.json"),
        (["run", "none.toml"], "there is no such recipe"),
        (["recipes", "show", "quickstar"], "did you mean 'quickstart'"),
        (["recipes", "check", "."], "is a directory"),
        (["run", "none.toml", "--set", "x"], "there is no such recipe"),
        ([*RANDOM, *HALF, "-o", "."], "is the current directory"),
        ([*RANDOM, *HALF, "--seed", "x"], "Invalid value for '--seed'"),
        ([*RANDOM, *HALF, "--samples", "0"], "--samples: 0 is out of range; at least 1"),
        ([*RANDOM, *HALF, "--min-rank", "9", "--max-rank", "3"], "--max-rank"),
        ([*RANDOM, *HALF, "--min-rank", "1000"], "the smallest possible is 1"),
        ([*RANDOM, "--policy", "threshold", *HALF], "needs threshold too"),
        ([*RANDOM, "--threshold", "1.5"], "--threshold: 1.5 is out of range"),
        ([*RANDOM, *HALF, "--set", "decompose.samples"], "give KEY=VALUE"),
        ([*RANDOM, *HALF, "--set", "model_args={ x = 1 }"], "model_args don't fit"),
        (["report", "nothing_like_it"], "nothing_like_it: unknown model"),
        (["eval", "test_vit", "--weights", "random", "--batch-size", "0"], "--batch-size"),
        (["eval", "test_vit", "--weights", "random", "--data", "nope"], "unknown dataset 'nope'"),
        (
            ["eval", "test_vit", "--weights", "random", "--data", "digits", "--task", "nope"],
            "unknown task 'nope'",
        ),
        (
            ["eval", "test_vit", "--weights", "random", "--data", "digits", "--split", "nope"],
            "no split 'nope'",
        ),
        (["report"], "there are no artefacts"),
        (["report", "test_vit", "--by", "x"], "give layer, kind or whole"),
        (["report", "test_vit", "--format", "x"], "give table, json, csv or markdown"),
        (["eval", "test_vit", "--weights", "random", "--max-drop", "1"], "needs --against"),
    ],
)
def test_a_wrong_request_is_refused(refused, args, says):
    assert says in refused(*args)


def test_a_damaged_checkpoint_is_named_with_its_damage(refused, here, checkpoint):
    tensors = load_file(checkpoint)
    changed = {
        "missing": {k: v for k, v in tensors.items() if k != QKV},
        "extra": tensors | {"more": torch.ones(2)},
        "shape": tensors | {QKV: tensors[QKV][:, :9].clone()},
        "nan": tensors | {QKV: torch.full_like(tensors[QKV], float("nan"))},
    }
    for name, content in changed.items():
        save_file(content, here / f"{name}.safetensors")
    (here / "cut.safetensors").write_bytes(checkpoint.read_bytes()[:5000])
    (here / "empty.safetensors").write_bytes(b"")
    (here / "pickle.bin").write_bytes(b"x")
    for name, says in [
        ("missing", QKV),
        ("extra", "holds more, for which test_vit has no place"),
        ("shape", "[192, 9]"),
        ("nan", f"{QKV} holds values that are not finite"),
        ("cut", "not a whole safetensors file"),
        ("empty", "not a whole safetensors file"),
    ]:
        line = refused("decompose", f"{name}.safetensors", "--arch", "test_vit", *HALF)
        assert says in line
        assert f"{name}.safetensors" in line
    assert "needs --arch" in refused("decompose", checkpoint, *HALF)
    line = refused("decompose", checkpoint, "--arch", "test_vitt", *HALF)
    assert "did you mean test_vit" in line
    assert "safetensors files" in refused("decompose", "pickle.bin", *HALF)


def test_an_output_that_is_something_else_is_left_alone(refused, here):
    (here / "folder").mkdir()
    (here / "folder" / "thesis.txt").write_text("years of work")
    (here / "file").write_text("x")
    for output in ("folder", "file"):
        line = refused(*RANDOM, *HALF, "-o", output)
        assert f"{output}: exists and is not an artefact" in line
    assert "file is a file" in refused(*RANDOM, *HALF, "-o", "file/below")


def test_calibration_data_that_can_not_be_read_is_named(refused, here):
    (here / "none").mkdir()
    (here / "bad").mkdir()
    (here / "bad" / "a.png").write_bytes(b"no image")
    (here / "some").mkdir()
    for name in "abc":
        Image.new("RGB", (160, 160)).save(here / "some" / f"{name}.png")
    whole = (here / "some" / "b.png").read_bytes()
    (here / "some" / "b.png").write_bytes(whole[: len(whole) // 2])
    assert "none: no images" in refused(*RANDOM, *HALF, "--calibrate", "none")
    line = refused(*RANDOM, *HALF, "--calibrate", "bad")
    assert "bad/a.png: not a readable image" in line
    line = refused(*RANDOM, *HALF, "--calibrate", "some")
    assert "some/b.png: not a readable image" in line
    (here / "classes" / "train" / "cat").mkdir(parents=True)
    line = refused("eval", "test_vit", "--weights", "random", "--data", "classes")
    assert "classes" in line


def test_a_damaged_artefact_is_named_with_its_damage(refused, here, artefact):
    forget_digests(artefact)

    def damaged(name: str) -> Path:
        return Path(shutil.copytree(artefact, here / name))

    weights = load_file(artefact / "model.safetensors")
    (one := damaged("cut") / "model.safetensors").write_bytes(one.read_bytes()[:-100])
    lacking = {k: v for k, v in weights.items() if k != "norm.weight"}
    save_file(lacking, damaged("lacking") / "model.safetensors")
    save_file(weights | {"foo": torch.ones(2)}, damaged("more") / "model.safetensors")
    bent = weights | {"norm.weight": torch.ones(3)}
    save_file(bent, damaged("bent") / "model.safetensors")
    nan = weights | {"norm.weight": torch.full((64,), float("nan"))}
    save_file(nan, damaged("nan") / "model.safetensors")
    (damaged("weightless") / "model.safetensors").unlink()
    (damaged("config") / "config.json").write_text("nope")
    (damaged("unbuilt") / "config.json").unlink()
    (damaged("arch") / "config.json").write_text('{"architecture": "nope"}')
    (damaged("manifest") / "pela.json").write_text("{")
    record = json.loads((artefact / "pela.json").read_text())
    (damaged("newer") / "pela.json").write_text(json.dumps(record | {"format": 99}))
    (damaged("older") / "pela.json").write_text("[]")
    layers = [la | ({"rank": -3} if la["rank"] else {}) for la in record["layers"]]
    (damaged("negative") / "pela.json").write_text(json.dumps(record | {"layers": layers}))
    layers = [la | ({"rank": 3} if la["rank"] else {}) for la in record["layers"]]
    (damaged("ranks") / "pela.json").write_text(json.dumps(record | {"layers": layers}))
    layers = [la | ({"name": "zzz"} if la["rank"] else {}) for la in record["layers"]]
    (damaged("renamed") / "pela.json").write_text(json.dumps(record | {"layers": layers}))
    for name, says in [
        ("nan", "nan/model.safetensors: norm.weight: holds values that are not finite"),
        ("weightless", "lack cls_token"),
        ("unbuilt", "unbuilt/config.json"),
        ("older", 'older/pela.json: no record of an artefact: it has no "format"'),
        ("negative", "rank: Input should be greater than or equal to 0"),
        ("ranks", "the model wants (3, 61)"),
        ("renamed", "zzz: the model has no such layer"),
        ("cut", "cut/model.safetensors: not a whole safetensors file"),
        ("lacking", "lack norm.weight"),
        ("more", "more/model.safetensors: foo: the model has no such tensor"),
        ("bent", "norm.weight: has shape (3,), the model wants (64,)"),
        ("config", "config/config.json: not valid JSON"),
        ("arch", "arch/config.json"),
        ("manifest", "manifest/pela.json: not valid JSON"),
        ("newer", "format 99"),
    ]:
        assert says in refused("eval", name, "--no-latency")
        if name in ("manifest", "newer", "older", "negative"):
            assert says in refused("report", name)
    assert "low-rank already" in refused("decompose", "a", *HALF)
    gate = ("eval", "a", "--against", "test_vit", "--weights", "random", "--max-drop", "1")
    assert "--max-drop needs --data" in refused(*gate)


def images(root: Path) -> Path:
    for split in ("train", "validation"):
        for shade, name in enumerate(("dark", "light")):
            (root / split / name).mkdir(parents=True)
            for n in range(4):
                image = Image.new("RGB", (16, 16), (100 * shade + n,) * 3)
                image.save(root / split / name / f"{n}.png")
    return root


def test_training_data_that_does_not_fit_is_named(refused, here):
    (here / "r.toml").write_text(
        'model = "vit_tiny_patch16_224"\nweights = "random"\nnum_classes = 2\noutput = "r"\n'
        "model_args = { img_size = 16, patch_size = 8, embed_dim = 32, depth = 1, num_heads = 2 }\n"
        '[data]\ndataset = "digits"\nbatch_size = 4\n[teacher]\n[decompose]\n'
    )
    (here / "empty" / "train" / "cat").mkdir(parents=True)
    (here / "empty" / "validation").mkdir()
    (here / "bare").mkdir()
    (images(here / "torn") / "train" / "dark" / "1.png").write_bytes(b"no image")
    (images(here / "held") / "validation" / "dark" / "1.png").write_bytes(b"no image")
    validation = images(here / "other") / "validation"
    (validation / "light").rename(validation / "bright")
    for name, says in [
        ("empty", "empty/train: no class folders with images"),
        ("bare", "bare: no class folders with images"),
        ("missing", "unknown dataset 'missing'"),
        ("torn", "torn/train/dark/1.png: not a readable image"),
        ("held", "held/validation/dark/1.png: not a readable image"),
        ("other", "other/validation/bright: the training split has no such class"),
        ("digits", "num_classes = 2: digits has 10 classes; set it to 10 or more, or leave it out"),
    ]:
        # one evaluation and no checkpoint before it, so that nothing is left to go on from
        once = ("--set", "teacher.steps=4", "--set", "teacher.save_every=9")
        assert says in refused("run", "r.toml", "--set", f"data.dataset={name}", *once)
    images(here / "good")
    (here / "taken" / "dense").mkdir(parents=True)
    (here / "taken" / "dense" / "thesis.txt").write_text("years of work")
    for output, says in [
        ("taken", "taken/dense: exists and is not an artefact"),
        ("r.toml", "r.toml is a file, not a directory"),
    ]:
        ask = ("--set", "data.dataset=good", "--set", f"output={output}")
        assert says in refused("run", "r.toml", *ask)


def test_a_refusal_keeps_the_checkpoints_there_are(here, monkeypatch):
    """An image that can't be read at step 500 must not cost the 499 steps before it."""
    from pelacli.recipe.step import step_of
    from pelacli.steps import outputs, training

    recipe = {"model": "m", "output": "r", "data": {"dataset": "digits"}}
    step = step_of(flags.from_flags(recipe, {"teacher": {}}), "teacher")
    work = Path("r/dense.training")

    def refused_within(finished: bool) -> None:
        with outputs.writing(step.output), training.workplace(step, "x") as directory:
            assert directory == work
            if finished:
                (work / "checkpoints" / "step-00000001").mkdir(parents=True)
                (work / "checkpoints" / "step-00000001" / "state.json").write_text("{}")
            raise RequestError("torn")

    for finished in (False, True):
        with pytest.raises(RequestError, match="torn"):
            refused_within(finished)
        assert work.exists() == finished
        assert (here / "r").exists() == finished


def test_a_plan_that_does_not_fit_is_named(refused, here):
    for text, says in [
        ("{", "not valid JSON"),
        ("3", 'it needs "layers"'),
        ('{"layers": [{"name": "zzz", "rank": 1, "shape": [4, 4]}]}', "zzz"),
        ('{"layers": [{"name": "blocks.0.mlp.fc1", "rank": 9, "shape": [4, 4]}]}', "rank 9"),
    ]:
        (here / "plan.json").write_text(text)
        line = refused(*RANDOM, "--plan", "plan.json")
        assert says in line
        assert "plan.json" in line


def test_a_recipe_that_is_no_text_is_refused(refused, here):
    (here / "r.toml").write_bytes(bytes(range(256)))
    assert "r.toml: not a text file" in refused("run", "r.toml")


def test_copying_a_recipe_overwrites_nothing(refused, here):
    (here / "quickstart.toml").write_text("mine")
    assert "exists already" in refused("recipes", "copy", "quickstart")
    assert "can't be written" in refused("recipes", "copy", "quickstart", "no/such/r.toml")


def test_a_mistake_in_a_recipe_is_named(refused, here):
    recipe = here / "r.toml"

    def with_line(line: str) -> str:
        recipe.write_text(
            'model = "test_vit"\nweights = "random"\noutput = "r"\n'
            f'[data]\ndataset = "digits"\n[finetune]\nsteps = 1\n{line}\n'
        )
        return refused("finetune", recipe.name)

    assert "r.toml:8: finetune.epoch: unknown key; did you mean 'epochs'?" in with_line("epoch = 2")
    assert "r.toml:8: finetune.lr" in with_line('lr = "fast"')
    assert "r.toml: not valid TOML" in with_line("= 3") or "r.toml:8" in with_line("= 3")
    assert "opt 'nope'" in with_line('opt = "nope"')
    assert "sched 'nope'" in with_line('sched = "nope"')
    assert "expected a number, not the text 'fast'" in with_line('lr = "fast"')
    assert "r/decompose: finetune needs this artefact" in with_line("[decompose]")
    assert "unknown task 'nope'" in with_line('task = "nope"')
