"""``pela recipes check`` looks for the model and the data, and says where in the recipe they are
named."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import generated_text
import pytest
import timm
from PIL import Image
from refusals import refused as refused
from safetensors.torch import save_file

from pelacli.recipe import reading
from pelacli.steps.preflight import batches
from pelacli.system import memory

RECIPE = """model = "test_vit"
weights = "random"
output = "r"
[data]
dataset = "images"
[teacher]
[decompose]
calibrate = "train"
[pretrain]
[finetune]
[eval]
"""


@pytest.fixture
def recipe(here) -> Path:
    for split in ("train", "validation"):
        for name in ("dark", "light"):
            (here / "images" / split / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(here / "images" / split / name / "0.png")
    (here / "bare").mkdir()
    (here / "folders/dense").mkdir(parents=True)
    (here / "folders/dense/mine.txt").write_text("mine")
    (here / "pets.csv").write_text("text,label\na,b\n")
    save_file({}, here / "empty.safetensors")
    (here / "r.toml").write_text(RECIPE)
    return here / "r.toml"


def test_a_recipe_whose_model_and_data_are_there_is_ok(pela, recipe):
    assert pela("recipes", "check", "r.toml")[::2] == (0, "")
    assert pela("recipes", "check", "r.toml", "--verbose")[2].splitlines()[-1] == "r.toml: ok"
    assert not Path("r").exists()


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["model=test_vitt"], "--set model=test_vitt: test_vitt: unknown model; did you"),
        (["model=./nowhere"], "--set model=./nowhere: ./nowhere: there is no such file"),
        (["model=bare"], "--set model=bare: bare: has no config.json"),
        (["model=empty.safetensors"], "holds weights"),
        (["model=empty.safetensors", "weights=pretrained"], "needs --arch"),
        (["weights=w.safetensors"], "r.toml:1: model: weights w.safetensors: there is no"),
        (["model_args={ nonsense = 1 }"], "r.toml:1: model: test_vit: model_args don't fit"),
        (["data.dataset=nowhere"], "--set data.dataset=nowhere: unknown dataset 'nowhere'"),
        (["data.dataset=bare"], "--set data.dataset=bare: bare: no class folders with images"),
        (["data.dataset=pets.csv"], "--set data.dataset=pets.csv: pets.csv: is a file"),
        (["data.val=dev"], "--set data.val=dev: images: no split 'dev'; it has train, validation"),
        (["data.train=dev"], "--set data.train=dev: images: no split 'dev'"),
        (["eval.split=dev"], "--set eval.split=dev: images: no split 'dev'"),
        (["finetune.data.dataset=nowhere"], "--set finetune.data.dataset=nowhere: unknown dataset"),
        (["eval.data.dataset=nowhere"], "--set eval.data.dataset=nowhere: unknown dataset"),
        (["decompose.calibrate=nowhere"], "--set decompose.calibrate=nowhere: unknown dataset"),
        (["decompose.max_drop=1.0", "decompose.data.dataset=nowhere"],
         "--set decompose.data.dataset=nowhere: unknown dataset"),
        (["task=segmentatoin"], "--set task=segmentatoin: unknown task 'segmentatoin'"),
        (["finetune.task=nope"], "--set finetune.task=nope: unknown task 'nope'"),
        (["task=text-classification"], "--set task=text-classification: images: the task"),
        (["eval.task=text-regression"], "--set eval.task=text-regression: images: the task"),
        (["task_args={ x = 1 }"], "--set task_args={ x = 1 }: task_args: task 'image-classific"),
        (["eval.against=nowhere"], "--set eval.against=nowhere: nowhere: unknown model"),
        (["num_classes=1"], "--set num_classes=1: num_classes = 1: images has 2 classes"),
        (["device=cuda"], "--set device=cuda: device 'cuda': this machine has cpu"),
        (["data.image_size=33"], "--set data.image_size=33: test_vit: does not take samples"),
        (["data.augment.auto_augment=x"], "--set data.augment.auto_augment=x: data.augment: "),
        (["decompose.include=['x']"], "--set decompose.include=['x']: include 'x': matches no"),
        (["decompose.pin={ x = 3 }"], "--set decompose.pin={ x = 3 }: pin 'x': matches no layer"),
        (["decompose.ratio=0.01"], "--set decompose.ratio=0.01: ratio 0.01 cannot be met"),
        (["decompose.plan=p.json"], "--set decompose.plan=p.json: p.json: can't be read"),
        (["pretrain.taps=['x']"], "--set pretrain.taps=['x']: taps: 'x' matches no module"),
        (["pretrain.opt=x"], "--set pretrain.opt=x: opt 'x': timm refuses it"),
        (["finetune.sched=x"], "--set finetune.sched=x: sched 'x': timm refuses it"),
        (["teacher.trackers=['x']"], "--set teacher.trackers=['x']: tracker 'x': "),
        (["output=r.toml"], "--set output=r.toml: r.toml/dense: r.toml is a file"),
        (["output=folders"], "--set output=folders: folders/dense: exists and is not an artefact"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named_by_its_place_in_the_recipe(refused, recipe, sets, says):
    flags = [part for text in sets for part in ("--set", text)]
    assert says in refused("recipes", "check", "r.toml", *flags)


def test_a_line_of_the_file_is_named_where_the_file_says_it(refused, recipe):
    recipe.write_text(RECIPE.replace('"images"', '"imagse"'))
    assert "r.toml:5: data.dataset: unknown dataset 'imagse'" in refused(
        "recipes", "check", "r.toml"
    )


def test_what_only_a_network_could_tell_is_noted(pela, recipe):
    """The tests are offline."""
    code, out, err = pela("recipes", "check", "r.toml", "--set", "model=owner/name")
    assert code == 0
    assert tomllib.loads(out)["model"] == "owner/name"
    assert err.startswith("note: --set model=owner/name: not looked at, nor are the data: ")
    code, _, err = pela("recipes", "check", "r.toml", "--set", "data.dataset=torch/cifar10")
    assert code == 0
    assert "torch/cifar10: not looked at, as that would fetch it" in err


@pytest.mark.parametrize("command", [["run"], ["pretrain"], ["finetune", "--dense"]])
def test_the_commands_look_before_they_begin(refused, recipe, command):
    """`refused` sees that nothing is written."""
    sections = {"run": "finetune", "pretrain": "pretrain", "finetune": "teacher"}
    broken = f"{sections[command[0]]}.opt=x"
    if command == ["pretrain"]:  # from what an earlier command has made
        assert "pretrain needs this artefact" in refused("pretrain", "r.toml")
        return
    assert f"--set {broken}: opt 'x'" in refused(*command, "r.toml", "--set", broken)


def test_a_command_looks_at_its_own_section_alone(pela, recipe):
    recipe.write_text(RECIPE.replace("[teacher]", "[teacher]\nsteps = 1").replace(
        "[finetune]", '[finetune]\nopt = "x"'))  # fmt: skip
    assert pela("finetune", "--dense", "r.toml")[0] == 0
    assert pela("run", "r.toml")[0] == 2


def test_steps_that_are_done_need_nothing_any_more(pela, recipe):
    recipe.write_text(RECIPE.partition("[teacher]")[0] + "[decompose]\nratio = 0.6\n[eval]\n"
                      "latency = false\n")  # fmt: skip
    assert pela("run", "r.toml")[0] == 0
    recipe.write_text(recipe.read_text().replace("[eval]\nlatency = false\n", ""))
    Path("images").rename("elsewhere")
    done = json.loads(pela("run", "r.toml", "--json")[1])
    assert [step["skipped"] for step in done["steps"]] == [True]


def test_several_mistakes_are_said_at_once_each_by_its_place(pela, recipe):
    sets = ("data.val=dev", "pretrain.opt=x", "device=cuda", "eval.against=nowhere")
    flags = [part for text in sets for part in ("--set", text)]
    code, out, err = pela("recipes", "check", "r.toml", *flags)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert all(line.startswith("pela: error: --set ") for line in lines)
    said = [line.split("--set ")[1].partition(":")[0] for line in lines]
    assert sorted(said) == sorted(sets)


def test_what_is_printed_is_the_recipe_with_every_key(pela, recipe):
    code, out, err = pela("recipes", "check", "r.toml", "--set", "pretrain.epochs=2.5")
    assert (code, err) == (0, "")
    assert "# device: cpu\n" in out
    assert "# pretrain: labels are learned from\n" in out
    Path("again.toml").write_text(out)
    assert reading.load("again.toml") == reading.load("r.toml", ["pretrain.epochs=2.5"])
    assert pela("recipes", "check", "again.toml")[:2] == (0, out)


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["teacher.warmup_epochs=2"], "2 updates of warm-up, and the run has 1"),
        (["data.batch_size=128"], "128 samples, and the data has 2, which are one batch"),
        (["pretrain.precision=float16"], "precision = 'fp16': fp16 is for GPUs"),
    ],
)
def test_what_a_recipe_asks_for_in_vain_is_noted(pela, recipe, sets, says):
    flags = [part for text in sets for part in ("--set", text)]
    code, _, err = pela("recipes", "check", "r.toml", *flags)
    assert code == 0
    assert err.startswith("note: ")
    assert says in err


def test_batches_without_room_are_refused_with_what_fits(refused, recipe, monkeypatch):
    for number in range(200):
        name = recipe.parent / f"images/train/dark/{number}.png"
        Image.new("RGB", (16, 16)).save(name)
    monkeypatch.setattr(memory, "available", lambda: 200_000_000)
    message = refused("recipes", "check", "r.toml", "--set", "data.batch_size=200")
    assert "--set data.batch_size=200: batches of 200 need at least" in message
    assert "set batch_size to at most " in message
    fits = int(message.partition("at most ")[2].partition(",")[0])
    assert 0 < fits < 200


def test_what_training_needs_is_said_once_before_it_where_it_is_much(pela, recipe, monkeypatch):
    assert "of memory" not in pela("recipes", "check", "r.toml")[2]
    monkeypatch.setattr(memory, "LARGE", 1)
    lines = [x for x in pela("recipes", "check", "r.toml")[2].splitlines() if "of memory" in x]
    steps = [line.partition(": needs at least ")[0] for line in lines]
    assert steps == ["teacher", "pretrain", "finetune"]
    assert all("for weights and optimizer); " in line for line in lines)


def test_what_a_pass_keeps_is_counted_without_values():
    """A linear map keeps its input, and a ReLU its output."""
    import torch
    from torch import nn

    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    inputs = torch.empty(1, 8, device="meta")
    assert batches._kept(module, inputs) == 4 * (8 + 16)


@pytest.fixture
def backbone(recipe) -> Path:
    """A recipe that heals a model without classes, on images with labels."""
    timm.models.save_for_hf(
        timm.create_model("test_vit", num_classes=0), "backbone", safe_serialization=True
    )
    text = RECIPE.replace("test_vit", "backbone").replace('weights = "random"\n', "")
    text = text.replace("[teacher]\n", "").replace("[finetune]\n", "")
    recipe.write_text(text.replace("[pretrain]", "[pretrain]\nsteps = 1"))
    return recipe


@pytest.mark.parametrize("command", [("recipes", "check"), ("run",)])
@pytest.mark.parametrize("named", ["task", "eval.task"])
def test_a_backbone_is_not_judged_by_a_task_that_is_named(refused, backbone, command, named):
    message = refused(*command, "r.toml", "--set", f"{named}=image-classification")
    assert "eval: backbone: has no classes (a backbone), so task" in message
    assert "`pela finetune`" in message


def test_a_backbone_is_compared_where_no_task_is_named(pela, backbone):
    code, out, err = pela("run", "r.toml", "--set", "eval.latency=false", "--json")
    assert code == 0, err
    assert err.count("has no classes (a backbone)") == 1
    evaluated = json.loads(out)["eval"]
    assert evaluated["metrics"] == {}
    assert "cosine" in evaluated["agreement"]
    code, _, err = pela("eval", "r/pretrain", "--task", "image-classification")
    assert (code, "has no classes (a backbone)" in err) == (2, True)
    code, _, err = pela("run", "r.toml", "--set", "eval.max_drop=-1.0")
    assert (code, "agreement with the dense model (cosine) drops by" in err) == (3, True)


def test_images_without_labels_heal_a_backbone_and_a_classifier(pela, backbone):
    """As the recipe vit_base says."""
    for model in ("backbone", "test_vit"):
        sets = (f"model={model}", "data.dataset=images/train/dark", f"output={model}-run")
        random = ("weights=random",) if model == "test_vit" else ()
        flags = [part for text in (*sets, *random) for part in ("--set", text)]
        code, out, err = pela("recipes", "check", "r.toml", *flags)
        assert code == 0, err
        assert "# pretrain: labels are not used" in out


@pytest.mark.parametrize(
    "sets",
    [
        ("unit=flops",), ("unit=latency",), ("energy=0.9",),
        ("policy=threshold", "threshold=0.5", "ratio=0.3"), ("policy=threshold", "threshold=0.5"),
        ("max_drop=1.0",),
    ],
)  # fmt: skip
def test_a_budget_that_shapes_do_not_decide_is_left_to_the_step(pela, recipe, sets):
    flags = [part for text in sets for part in ("--set", f"decompose.{text}")]
    code, _, err = pela("recipes", "check", "r.toml", *flags)
    assert (code, err) == (0, "")


@pytest.fixture
def texts(here) -> Path:
    """A recipe for a tiny BERT, which looks into its mask, so that it needs values to run."""
    for split, count in (("train", 12), ("validation", 6)):
        generated_text.write(here / f"texts/{split}.jsonl", generated_text.labelled(count, 1))
    generated_text.save_model("bert", "MaskedLM", here / "bert")
    (here / "t.toml").write_text(
        'model = "bert"\noutput = "r"\ntask = "text-classification"\n'
        '[data]\ndataset = "texts"\nbatch_size = 4\n[decompose]\nratio = 0.8\n'
        'calibrate = "train"\n[pretrain]\nlabels = false\n[finetune]\n[eval]\n'
    )
    return here / "t.toml"


def test_a_text_model_goes_through_all_steps_without_values(pela, texts):
    code, out, err = pela("recipes", "check", "t.toml", "--set", "decompose.unit=flops")
    assert (code, err) == (0, "")
    code, out, err = pela("recipes", "check", "t.toml")
    assert (code, err) == (0, "")
    assert "# pretrain: 2 taps, bert.encoder.layer.0 … bert.encoder.layer.1\n" in out
    assert "# eval: by accuracy of task text-classification, and" in out


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (
            ["weights=random", "model_args={ hidden_size = 17 }"],
            "t.toml:1: model: bert/config.json",
        ),
        (["finetune.drop_path=0.2"], "--set finetune.drop_path=0.2: drop_path: this model has no"),
        (["task_args={ label = 'x' }"], "no column 'x'; it has text, label"),
        (["task=text-regression"], "'red' is no score"),
        (["num_classes=3"], "--set num_classes=3: num_classes = 3: texts has 4 classes"),
        (["eval.max_drop=1.0"], "--set eval.max_drop=1.0: bert has other outputs"),
        (["decompose.calibrate=bert"], "--set decompose.calibrate=bert: bert: no text files"),
    ],
)
def test_what_is_wrong_with_a_recipe_for_texts(refused, texts, sets, says):
    flags = [part for text in sets for part in ("--set", text)]
    assert says in refused("run", "t.toml", *flags)
