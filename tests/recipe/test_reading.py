"""Recipes: what they may say, the one line for what they may not, and what makes a step done."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelacli.errors import RequestError
from pelacli.recipe import gallery
from pelacli.recipe.fields import parse_ratio
from pelacli.recipe.fingerprint import fingerprint
from pelacli.recipe.reading import from_flags, load, with_flags
from pelacli.recipe.schema import (
    Augment,
    Data,
    Decompose,
    Eval,
    Loss,
    Pretrain,
    Recipe,
    Train,
    resolved,
    schema,
)
from pelacli.recipe.step import step_of

TOP = 'model = "vit_base"\noutput = "runs/x"\n'  # lines 1 and 2
DATA = TOP + '[data]\ndataset = "digits"\n'  # lines 3 and 4

FULL = """
model = "vit_base"
weights = "w.safetensors"
arch = "vit_base_patch16_224"
model_args = { img_size = 32, drop = 0.5, flag = true, name = "a", sizes = [1, 2] }
num_classes = 10
output = "runs/x"
seed = 3
task = "image-classification"
device = "cpu"
[data]
dataset = "digits"
train = "a"
val = "b"
image_size = 32
batch_size = 16
workers = 2
[data.augment]
scale = [0.5, 1.0]
ratio = [0.9, 1.1]
mixup = 0.8
[teacher]
epochs = 0.5
betas = [0.9, 0.99]
[decompose]
ratio = "2/3"
scope = "layers"
policy = "threshold"
threshold = 0.9
calibrate = "train"
include = ["blocks"]
exclude = ["head$"]
plan = "plans/a.json"
[decompose.pin]
'blocks[.]0' = 8
'qkv' = "dense"
[pretrain]
taps = ["blocks[.][0-9]+"]
labels = false
precision = "bf16"
trackers = ["tensorboard"]
[pretrain.loss]
feature = 0.5
perturbation_form = "hinge"
[finetune]
steps = 5
[finetune.data]
dataset = "hfds/cifar10"
[eval]
max_drop = 0.6
"""


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str, *overrides: str) -> Recipe:
    Path("x.toml").write_text(text, encoding="utf-8")
    return load("x.toml", overrides)


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(RequestError) as caught:
        read(text, *overrides)
    return str(caught.value)


# --- ratios -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "ratio"),
    [
        ("2/3", Fraction(2, 3)),
        (" 2 / 3 ", Fraction(2, 3)),
        (0.1, Fraction(1, 10)),
        ("0.1", Fraction(1, 10)),
        (".5", Fraction(1, 2)),
        (1e-5, Fraction(1, 100000)),
        ("1", Fraction(1)),
        (1, Fraction(1)),
        (Fraction(1, 3), Fraction(1, 3)),
    ],
)
def test_a_ratio_is_read_exactly(value: Any, ratio: Fraction) -> None:
    assert parse_ratio(value) == ratio


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_every_fraction_up_to_one_is_a_ratio(n: int, d: int) -> None:
    n, d = sorted((n, d))
    assert parse_ratio(f"{n}/{d}") == Fraction(n, d)
    if n < d:
        with pytest.raises(ValueError, match="out of range; a ratio is above 0 and at most 1"):
            parse_ratio(f"{d}/{n}")


@given(st.floats(0, 1, exclude_min=True, allow_subnormal=False))
def test_a_float_is_read_by_its_digits(value: float) -> None:
    ratio = parse_ratio(value)
    assert ratio == Fraction(repr(value))
    assert ratio == parse_ratio(repr(value))
    assert float(ratio) == value


@given(st.integers(0, 10**12), st.integers(0, 12))
def test_a_decimal_is_its_digits_over_a_power_of_ten(digits: int, places: int) -> None:
    expected = Fraction(digits, 10**places)
    text = f"{digits // 10**places}.{digits % 10**places:0{places}d}" if places else str(digits)
    if 0 < expected <= 1:
        assert parse_ratio(text) == expected
    else:
        with pytest.raises(ValueError, match="out of range"):
            parse_ratio(text)


@pytest.mark.parametrize(
    "value", ["", "half", "1/0", "2/3/4", "50%", "0,5", "nan", "inf", "1e-999999999", "1 2", "0x1"]
)
def test_what_is_no_ratio(value: str) -> None:
    with pytest.raises(ValueError, match="no ratio; give a decimal or a fraction: "):
        parse_ratio(value)


@pytest.mark.parametrize("value", ["0", 0.0, "-1/2", -0.5, "1.0001", 2, "3/2"])
def test_what_is_out_of_range(value: Any) -> None:
    with pytest.raises(ValueError, match="out of range; a ratio is above 0 and at most 1"):
        parse_ratio(value)


@pytest.mark.parametrize("text", ['"2/3"', "0.5", '"0.5"', "1"])
def test_a_recipe_keeps_the_ratio_as_it_was_written(text: str) -> None:
    found = read(TOP + f"[decompose]\nratio = {text}\n").decompose
    assert found is not None
    assert found.ratio == text.strip('"')


# --- reading ------------------------------------------------------------------------------------


def test_a_full_recipe() -> None:
    recipe = read(FULL)
    assert recipe.model_args == {
        "img_size": 32,
        "drop": 0.5,
        "flag": True,
        "name": "a",
        "sizes": [1, 2],
    }
    assert recipe.model_args["flag"] is True
    assert recipe.output == Path("runs/x")
    assert recipe.data is not None
    assert recipe.data.augment.scale == (0.5, 1.0)
    assert recipe.teacher is not None
    assert recipe.teacher.epochs == 0.5
    assert recipe.decompose is not None
    assert recipe.decompose.pin == {"blocks[.]0": 8, "qkv": "dense"}
    assert recipe.decompose.plan == Path("plans/a.json")
    assert recipe.pretrain is not None
    assert recipe.pretrain.loss == Loss(feature=0.5, perturbation_form="hinge")
    assert recipe.finetune is not None
    assert recipe.finetune.data == Data(dataset="hfds/cifar10")


def test_the_defaults() -> None:
    recipe = read(DATA + "[pretrain]\n[decompose]\n[eval]\n")
    assert recipe == Recipe(
        model="vit_base",
        output=Path("runs/x"),
        data=Data(dataset="digits", augment=Augment()),
        pretrain=Pretrain(lr=1e-3, loss=Loss(task=1.0, feature=1.0, perturbation=0.0)),
        decompose=Decompose(ratio=None, unit="params", scope="model", policy="energy"),
        eval=Eval(latency=True),
    )
    assert recipe.teacher is None
    assert Decompose().budget == Fraction(1, 2)


def test_windows_line_ends_and_byte_order_mark() -> None:
    Path("x.toml").write_bytes(("\ufeff" + DATA + "wrokers = 1\n").replace("\n", "\r\n").encode())
    with pytest.raises(RequestError) as caught:
        load(Path("x.toml"))
    assert str(caught.value) == "x.toml:5: data.wrokers: unknown key; did you mean 'workers'?"


def test_a_recipe_does_not_change() -> None:
    recipe = read(DATA)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]


# --- mistakes in the file -----------------------------------------------------------------------

UNKNOWN = {
    "near": (
        TOP + '[decompose]\nratio = 0.5\n\npolcy = "uniform"\n',
        "x.toml:6: decompose.polcy: unknown key; did you mean 'policy'?",
    ),
    "at the top": (
        "# a recipe\n" + TOP + "sede = 1\n",
        "x.toml:4: sede: unknown key; did you mean 'seed'?",
    ),
    "section": (
        DATA + "[pretian]\nepochs = 1\n",
        "x.toml:5: pretian: unknown key; did you mean 'pretrain'?",
    ),
    "subsection": (
        DATA + "[data.agument]\nmixup = 1\n",
        "x.toml:5: data.agument: unknown key; did you mean 'augment'?",
    ),
    "dotted": (
        TOP + "decompose.min_rnk = 3\n",
        "x.toml:3: decompose.min_rnk: unknown key; did you mean 'min_rank'?",
    ),
    "inline table": (
        TOP + '\ndata = { dataset = "digits", augment = { mixpu = 1.0 } }\n',
        "x.toml:4: data.augment.mixpu: unknown key; did you mean 'mixup'?",
    ),
    "quoted": (
        TOP + '[decompose]\n"a.b" = 3\n',
        "x.toml:4: decompose.'a.b': unknown key; known keys: ratio, unit, scope, energy, "
        "max_drop, data, split, task, task_args, policy, threshold, calibrate, samples, correct, "
        "include, exclude, pin, min_rank, max_rank, multiple, plan",
    ),
    "of another section": (
        DATA + "hflip = 0.0\n",
        "x.toml:5: data.hflip: unknown key; it belongs to [data.augment]",
    ),
    "of the nearest sections": (
        TOP + "lr = 0.1\n",
        "x.toml:3: lr: unknown key; it belongs to [teacher] or [pretrain] or [finetune]",
    ),
    "of a section's own subsection": (
        TOP + "[finetune.data]\ndataset = 'a'\nhflip = 0.0\n",
        "x.toml:5: finetune.data.hflip: unknown key; it belongs to [finetune.data.augment]",
    ),
    "of the section nearest the top": (
        TOP + "dataset = 'digits'\n",
        "x.toml:3: dataset: unknown key; it belongs to [data]",
    ),
    "of the top": (
        DATA + "seed = 1\n",
        "x.toml:5: data.seed: unknown key; it belongs to the top, above all sections",
    ),
    "instead of a needed one": (
        'modle = "a"\noutput = "b"\n',
        "x.toml:1: modle: unknown key; did you mean 'model'? (and 1 more)",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_key(case: str) -> None:
    text, line = UNKNOWN[case]
    assert refused(text) == line


TYPES = [
    ('seed = "5"', "seed", "expected a whole number, not the text '5'; write it without quotes"),
    ("seed = 5.0", "seed", "expected a whole number, not the number 5.0"),
    ("seed = true", "seed", "expected a whole number, not true"),
    ("seed = 1979-05-27", "seed", "expected a whole number, not the date 1979-05-27"),
    ("seed = [1]", "seed", "expected a whole number, not a list"),
    ("task = {}", "task", "expected text, not a table"),
    (
        "task = 7",
        "task",
        "expected text, not the number 7; write it in quotes, in a shell '\"7\"'",
    ),
    ('data = "digits"', "data",
     "expected a section, not the text 'digits'; write its name in brackets, and its keys below"),
    ("model_args = 1", "model_args", "expected a table, not the number 1"),
    ("model_args = { a = { b = 1 } }", "model_args.a",
     "expected a number, text, true or false, or a list of these"),
    ("model_args = { a = [1, nan] }", "model_args.a", "expected a finite number"),
    ('eval.latency = "true"', "eval.latency",
     "expected true or false, not the text 'true'; write it without quotes"),
    ('eval.max_drop = "1"', "eval.max_drop",
     "expected a number, not the text '1'; write it without quotes"),
    ('eval.max_drop = "a"', "eval.max_drop", "expected a number, not the text 'a'"),
    ("eval.max_drop = nan", "eval.max_drop", "expected a finite number"),
    ("finetune.lr = inf", "finetune.lr", "expected a finite number"),
    ("data.augment.ratio = [0.5, inf]", "data.augment.ratio", "expected a finite number"),
    ('decompose.exclude = "head"', "decompose.exclude",
     "expected a list, not the text 'head'; write [\"head\"]"),
    ("decompose.exclude = [3]", "decompose.exclude[0]",
     "expected text, not the number 3; write it in quotes, in a shell '\"3\"'"),
    ("decompose.plan = 3", "decompose.plan", "expected a path, not the number 3"),
    ('decompose.plan = ""', "decompose.plan", "is empty"),
    ("decompose.ratio = true", "decompose.ratio",
     "'true' is no ratio; give a decimal or a fraction: 0.5, 2/3"),
    ("decompose.ratio = 1.5", "decompose.ratio",
     "1.5 is out of range; a ratio is above 0 and at most 1"),
    ('decompose.policy = "energi"', "decompose.policy",
     "'energi' is none of energy, uniform, threshold; did you mean 'energy'?"),
    ("decompose.policy = 3", "decompose.policy", "3 is none of energy, uniform, threshold"),
    ('decompose.calibrate = ""', "decompose.calibrate", "is empty"),
    ("decompose.samples = 0", "decompose.samples", "0 is out of range; at least 1"),
    ("decompose.threshold = 0", "decompose.threshold", "0 is out of range; above 0"),
    ("decompose.threshold = 1.5", "decompose.threshold", "1.5 is out of range; at most 1"),
    ('decompose.include = ["a", "("]', "decompose.include[1]",
     "'(' is no regular expression (missing ), unterminated subpattern at position 0)"),
    ("decompose.pin = { '(' = 3 }", "decompose.pin.'('",
     "'(' is no regular expression (missing ), unterminated subpattern at position 0)"),
    ("decompose.pin = { 'a.b' = 'half' }", "decompose.pin.'a.b'",
     "'half' is no rank; give a whole number, 'dense' or 'full'"),
    ("decompose.pin = { a = -1 }", "decompose.pin.a",
     "-1 is no rank; give a whole number, 'dense' or 'full'"),
    ("decompose.pin = { a = true }", "decompose.pin.a",
     "True is no rank; give a whole number, 'dense' or 'full'"),
    ('device = "cuda:1"', "device", "'cuda:1' is no kind of device; give 'auto', 'cpu', 'cuda' or "
     "'mps' (which GPU: CUDA_VISIBLE_DEVICES)"),
    ("data.augment.scale = 1", "data.augment.scale", "expected two numbers, as [0.5, 1.0]"),
    ("data.augment.scale = [1]", "data.augment.scale", "expected two numbers, as [0.5, 1.0]"),
    ("data.augment.scale = [0, 1]", "data.augment.scale[0]", "0 is out of range; above 0"),
    ('data.augment.ratio = [1, "a"]', "data.augment.ratio[1]",
     "expected a number, not the text 'a'"),
    ("data.augment.ratio = [2, 1]", "data.augment.ratio",
     "[2.0, 1.0] is no range; the smaller number comes first"),
    ("data.augment.smoothing = 1", "data.augment.smoothing", "1 is out of range; below 1"),
    ("data.augment.hflip = true", "data.augment.hflip", "expected a number, not true"),
    ("finetune.betas = [0.9, 1.0]", "finetune.betas[1]", "1.0 is out of range; below 1"),
    ("pretrain.taps = ['[']", "pretrain.taps[0]",
     "'[' is no regular expression (unterminated character set at position 0)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key", "problem"), TYPES)
def test_a_wrong_value(text: str, key: str, problem: str) -> None:
    # a section that needs data has it, so that only one thing is wrong
    own = "" if text.startswith("data = ") else 'data.dataset = "digits"\n'
    before = TOP + own + "# a comment\n\n"
    assert refused(before + text + "\n") == f"x.toml:{before.count(chr(10)) + 1}: {key}: {problem}"


def test_a_missing_key_is_placed_by_its_section() -> None:
    assert refused('output = "b"\n') == (
        'x.toml: model: is missing; add model = "…": '
        "timm name or alias, hub id, directory, file, artefact"
    )
    assert refused(TOP + "\n[data]\nworkers = 1\n") == (
        'x.toml:4: data.dataset: is missing; add dataset = "…": '
        "digits, a folder, hfds/NAME, torch/NAME, wds/DIRECTORY, or a text file"
    )


def test_several_mistakes_are_counted() -> None:
    text = TOP + "[decompose]\nsamples = 0\nmin_rank = 'a'\npolcy = 1\n"
    line = "x.toml:6: decompose.polcy: unknown key; did you mean 'policy'? (and 2 more)"
    assert refused(text) == line


TOGETHER = {
    "threshold without its share": (
        TOP + '[decompose]\n\npolicy = "threshold"\n',
        "x.toml:5: decompose.policy: 'threshold' needs threshold too, the share of energy to keep",
    ),
    "share without the policy": (
        TOP + "[decompose]\nthreshold = 0.9\n",
        "x.toml:4: decompose.threshold: needs policy = 'threshold' too",
    ),
    "ranks": (
        TOP + "[decompose]\nmin_rank = 3\nmax_rank = 2\n",
        "x.toml:5: decompose.max_rank: max_rank 2 is below min_rank 3; change one",
    ),
    "rates": (
        DATA + "[finetune]\nepochs = 1\nlr = 1e-7\n",
        "x.toml:7: finetune.lr: min_lr 1e-06 is above lr 1e-07; lower it",
    ),
    "no loss": (
        DATA + "[pretrain]\nlabels = false\n[pretrain.loss]\nfeature = 0.0\n",
        "x.toml:7: pretrain.loss: no loss is left to train on; give one a weight above 0",
    ),
    "taps without the feature loss": (
        DATA + "[pretrain]\ntaps_over = 0.5\n[pretrain.loss]\nfeature = 0.0\n",
        "x.toml:6: pretrain.taps_over: is about loss.feature, which is 0; give that a weight",
    ),
    "teacher": (
        TOP + "[eval]\n[teacher]\n",
        "x.toml:4: teacher: needs data; add [data] or [teacher.data]",
    ),
    "pretrain": (
        TOP + "[eval.data]\ndataset='a'\n[pretrain]\n",
        "x.toml:5: pretrain: needs data; add [data] or [pretrain.data]",
    ),
    "finetune": (
        TOP + "[finetune]\n",
        "x.toml:3: finetune: needs data; add [data] or [finetune.data]",
    ),
    "calibration": (
        TOP + '[decompose]\ncalibrate = "train"\n',
        "x.toml:4: decompose.calibrate: 'train' is the recipe's own data; add [data]",
    ),
    "drop and ratio": (
        DATA + "[decompose]\nratio = 0.5\nmax_drop = 1.0\n",
        "x.toml:7: decompose.max_drop: max_drop and ratio both say how small; give one",
    ),
    "drop and threshold": (
        DATA + "[decompose]\nmax_drop = 1.0\npolicy = 'threshold'\nthreshold = 0.9\n",
        "x.toml:6: decompose.max_drop: max_drop and threshold both say how small; give one",
    ),
    "drop and energy": (
        DATA + "[decompose]\nmax_drop = 1.0\nenergy = 0.9\n",
        "x.toml:6: decompose.max_drop: max_drop and energy both say how small; give one",
    ),
    "drop and plan": (
        DATA + "[decompose]\nmax_drop = 1.0\nplan = 'p.json'\n",
        "x.toml:6: decompose.max_drop: max_drop and plan both say how small; give one",
    ),
    "energy and ratio": (
        TOP + "[decompose]\nenergy = 0.9\nratio = 0.5\n",
        "x.toml:4: decompose.energy: energy and ratio both say how small; give one",
    ),
    "energy and policy": (
        TOP + "[decompose]\nenergy = 0.9\npolicy = 'uniform'\n",
        "x.toml:4: decompose.energy: belongs to policy 'energy', not to 'uniform'",
    ),
    "drop without data": (
        TOP + "[decompose]\nmax_drop = 1.0\n",
        "x.toml:4: decompose.max_drop: needs samples to measure on; give --data, or [data] or "
        "[decompose.data]",
    ),
    "data without drop": (
        TOP + "[decompose]\n[decompose.data]\ndataset = 'a'\n",
        "x.toml:4: decompose.data: is what max_drop measures on; give that too",
    ),
    "gate": (
        TOP + "[eval]\nmax_drop = 1\n",
        "x.toml:4: eval.max_drop: needs data to measure on; add [data] or [eval.data]",
    ),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_keys_that_do_not_go_together(case: str) -> None:
    text, line = TOGETHER[case]
    assert refused(text) == line


@pytest.mark.parametrize(
    "text",
    [
        TOP + "[finetune.data]\ndataset = 'a'\n",
        TOP + "[finetune.data]\ndataset = 'a'\n[eval]\nmax_drop = 1\n",
        TOP + "[decompose]\ncalibrate = 'photos'\n[eval]\n",
        DATA + "[teacher]\n[pretrain]\n[finetune]\n[decompose]\ncalibrate = 'train'\n",
        TOP + "[decompose]\nthreshold = 0.9\npolicy = 'energy'\n",
        TOP + "[decompose]\nmax_drop = 0\n[decompose.data]\ndataset = 'a'\n",
        DATA + "[decompose]\nmax_drop = 1.0\npolicy = 'uniform'\nunit = 'flops'\nsplit = 'a'\n",
        TOP + "[decompose]\nenergy = 1.0\nunit = 'flops'\n",
        DATA + "[finetune]\nlr = 0.0\nsched = 'none'\n",
        DATA + "[pretrain.loss]\nfeature = 0.0\n",
        DATA + "[pretrain]\nlabels = false\n[pretrain.loss]\ntask = 0.0\n",
    ],
)
def test_keys_that_do_go_together(text: str) -> None:
    assert read(text).model == "vit_base"


# --- files that are no recipe -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\nmodel = vit\n", "2: not valid TOML: invalid value; text and fractions need quotes"),
        (
            TOP + "[decompose]\nratio = 2/3\n",
            "4: not valid TOML: expected newline or end of document after a statement; "
            "text and fractions need quotes",
        ),
        (TOP + "\nmodel = 'b'\n\n[data]\n", "4: not valid TOML: this key is there already"),
        ("a = 1\nb = [\n1,\n", "3: not valid TOML: invalid value"),
        ("\x00\x01\x02", "1: not valid TOML: invalid statement"),
    ],
)
def test_invalid_toml(text: str, line: str) -> None:
    assert refused(text) == f"x.toml:{line}"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\xff", "x.toml: not a text file; a recipe is TOML in UTF-8"),
        (b"a = " + b"9" * 5000, "x.toml: not valid TOML: a number is too long or a list too deep"),
        (b"a = " + b"[" * 9000, "x.toml: not valid TOML: a number is too long or a list too deep"),
    ],
)
def test_garbage(content: bytes, line: str) -> None:
    Path("x.toml").write_bytes(content)
    with pytest.raises(RequestError) as caught:
        load("x.toml")
    assert str(caught.value) == line


def test_no_file_a_directory_an_unreadable_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError) as caught:
        load("none.toml")
    line = "none.toml: there is no such recipe; `pela recipes list` shows some"
    assert str(caught.value) == line
    with pytest.raises(RequestError) as caught:
        load(".")
    assert str(caught.value) == ".: is a directory; name the recipe file in it"

    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(RequestError) as caught:
        load("x.toml")
    assert str(caught.value) == "x.toml: can't be read: Permission denied"


# --- the line of a key --------------------------------------------------------------------------


def test_the_line_of_a_key_in_a_list_over_several_lines() -> None:
    text = TOP + "[decompose]\nexclude = [ # a\n  'a',\n\n  '(',\n  'b',\n]\nmin_rank = -1\n"
    assert refused(text).startswith("x.toml:7: decompose.exclude[1]: '(' is no")
    good = text.replace("'('", "'c'")
    assert refused(good).startswith("x.toml:10: decompose.min_rank: -1 is")


def test_a_key_begins_where_its_list_begins() -> None:
    text = TOP + "[decompose]\n\n# ranks\nmin_rank = [\n  1,\n]\nmax_rank = 2\n"
    assert refused(text).startswith("x.toml:6: decompose.min_rank: expected a whole number")


def test_long_texts_hold_things_that_look_like_keys() -> None:
    text = 'output = "o"\ntask = """\n[data]\nseed = "a"\n"""\nmodel = "m"\nseed = -1\n'
    assert refused(text) == "x.toml:7: seed: -1 is out of range; at least 0"


def test_a_key_begins_where_its_long_text_begins() -> None:
    text = TOP + "\nseed = '''\n1\n2\n'''\ntask = 'a'\n"
    assert refused(text).startswith("x.toml:4: seed: expected a whole number, not the text")


def test_odd_separators_end_no_line() -> None:
    text = TOP + "# a\u2028b\u0085c\n\nseed = -1\n"
    assert refused(text) == "x.toml:5: seed: -1 is out of range; at least 0"


CHUNKS = [
    "# a comment with key = 1 and [section]",
    "",
    "[data]\ndataset = 'digits'\naugment.mixup = 0.5",
    "[decompose]\nexclude = [\n  'a', # one\n  'b]',\n]\npin = { 'a.b' = 3 }",
    "[pretrain]\ntaps = ['x',\n'y']",
    "[pretrain.loss]\ntask = 0.5",
    "[finetune]\nopt = '''\nbad_key = 1\n'''",
    "[eval]",
]


@given(st.permutations(CHUNKS), st.data())
def test_the_line_of_a_key_wherever_it_stands(chunks: list[str], choice: st.DataObject) -> None:
    n = choice.draw(st.sampled_from([i for i, c in enumerate(chunks) if c.startswith("[")]))
    chunks = [TOP.rstrip(), *chunks[:n], chunks[n] + "\nbad_key = 1", *chunks[n + 1 :]]
    text = "\n".join(chunks)
    place = len("\n".join(chunks[: n + 2]).split("\n"))  # it is the last line of its chunk
    assert refused(text).startswith(f"x.toml:{place}: {chunks[n + 1][1:].split(']')[0]}.bad_key: ")


def test_a_long_file_is_searched_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    text = TOP + "[decompose.pin]\n" + "".join(f"'layer{n}' = 3\n" for n in range(500)) + "b = -1\n"
    calls = 0
    parse = tomllib.loads

    def counted(text: str) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return parse(text)

    monkeypatch.setattr(tomllib, "loads", counted)
    assert refused(text).startswith("x.toml:504: decompose.pin.b: -1 is no rank")
    assert calls < 30


# --- overrides ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("model=vit_large", ("model",), "vit_large"),
        ("model = timm/vit=b", ("model",), "timm/vit=b"),
        ('model="a b"', ("model",), "a b"),
        ("model=a # b", ("model",), "a # b"),
        ('model="a"\nseed = 9', ("model",), '"a"\nseed = 9'),
        ("seed=5", ("seed",), 5),
        ("seed=5 # five", ("seed",), 5),
        ("output=runs/y", ("output",), Path("runs/y")),
        ("data.workers=3", ("data", "workers"), 3),
        ("decompose.ratio=2/3", ("decompose", "ratio"), "2/3"),
        ("decompose.ratio=0.5", ("decompose", "ratio"), "0.5"),
        ('decompose.exclude=["head", "a"]', ("decompose", "exclude"), ["head", "a"]),
        ('decompose.pin."blocks[.]0=x"=4', ("decompose", "pin"), {"blocks[.]0=x": 4}),
        ("decompose.pin.'a.b'=dense", ("decompose", "pin"), {"a.b": "dense"}),
        ("decompose.pin={a=1, b='full'}", ("decompose", "pin"), {"a": 1, "b": "full"}),
        ("pretrain.epochs=5", ("pretrain", "epochs"), 5.0),
        ("pretrain.loss.feature=0.25", ("pretrain", "loss", "feature"), 0.25),
        ("data.augment.scale=[0.5, 1]", ("data", "augment", "scale"), (0.5, 1.0)),
        ("eval.latency=false", ("eval", "latency"), False),
        ("model_args.img_size=32", ("model_args", "img_size"), 32),
    ],
)
def test_an_override(override: str, path: Sequence[str], value: Any) -> None:
    found: Any = read(DATA + "[pretrain]\nepochs = 3\n", override)
    for name in path:
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value
    assert type(found) is type(value) or isinstance(value, Path)


def test_an_override_leaves_the_rest_alone() -> None:
    text = DATA + "workers = 2\n[data.augment]\nmixup = 0.5\nhflip = 0.0\n"
    found = read(text, "data.augment.mixup=0.25", "data.augment.mixup=0.75").data
    expected = Data(dataset="digits", workers=2, augment=Augment(mixup=0.75, hflip=0.0))
    assert found == expected  # the last of two counts


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1))
def test_any_pattern_can_be_pinned(text: str) -> None:
    pattern = re.escape(text)
    found = read(TOP, f"decompose.pin.{json.dumps(pattern)}=3").decompose
    assert found is not None
    assert found.pin == {pattern: 3}


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("pretrain.epochs=-1", "-1 is out of range; above 0"),
        ("decompose.polcy=x", "unknown key; did you mean 'policy'?"),
        ("decompose.ratio=3/2", "3/2 is out of range; a ratio is above 0 and at most 1"),
        ("seed=abc", "expected a whole number, not the text 'abc'"),
        ("pretian.epochs=5", "pretian: unknown key; did you mean 'pretrain'?"),
        (
            "data.train=2017",
            "expected text, not the number 2017; write it in quotes, in a shell '\"2017\"'",
        ),
        ("decompose.exclude=[head]", "expected a list, not the text '[head]'; write [\"head\"]"),
        (
            "decompose.exclude=['(']",
            "decompose.exclude[0]: '(' is no regular expression "
            "(missing ), unterminated subpattern at position 0)",
        ),
        (
            "decompose.pin={'a.b'=-1}",
            "decompose.pin.'a.b': -1 is no rank; give a whole number, 'dense' or 'full'",
        ),
        (
            "decompose.policy=threshold",
            "'threshold' needs threshold too, the share of energy to keep",
        ),
        ("decompose.max_rank=1", "max_rank 1 is below min_rank 2; change one"),
        (
            "finetune.data.workers=1",
            'finetune.data.dataset: is missing; add dataset = "…": '
            "digits, a folder, hfds/NAME, torch/NAME, wds/DIRECTORY, or a text file",
        ),
        ("model.a=3", "model is no section"),
        ("output=", "is empty"),
        ("seed", "give KEY=VALUE, as pretrain.epochs=5"),
        ("=5", "give KEY=VALUE, as pretrain.epochs=5"),
        ("", "give KEY=VALUE, as pretrain.epochs=5"),
        *[
            (
                f"{key}=5",
                f"{key!r} is no key; quote parts that hold more than letters, digits, _ and -: "
                'decompose.pin."blocks[.]0"=8',
            )
            for key in ("a b", "#", "decompose..pin", "a[0]", "[data]")
        ],
    ],
)
def test_a_wrong_override_is_named_and_no_line(override: str, line: str) -> None:
    text = DATA + "[decompose]\nmin_rank = 2\n[pretrain]\nepochs = 3\n"
    assert refused(text, override) == f"--set {override}: {line}"


def test_an_override_that_clashes_with_the_file_is_named() -> None:
    text = TOP + "[decompose]\nmax_rank = 9\n"
    assert refused(text, "decompose.min_rank=30") == (
        "--set decompose.min_rank=30: max_rank 9 is below min_rank 30; change one"
    )
    assert refused(TOP, "finetune.lr=0.1") == (
        "--set finetune.lr=0.1: finetune: needs data; add [data] or [finetune.data]"
    )


def test_of_several_overrides_the_one_that_counts_is_named() -> None:
    whole, part = "pretrain={epochs=-1}", "pretrain.epochs=-2"
    problem = "is out of range; above 0"
    assert refused(DATA, part, whole) == f"--set {whole}: pretrain.epochs: -1 {problem}"
    assert refused(DATA, whole, part) == f"--set {part}: -2 {problem}"
    assert refused(DATA, part, whole, part) == f"--set {part}: -2 {problem}"


def test_an_override_sets_one_key() -> None:
    assert refused(TOP, "[data]\ndataset=a").startswith("--set [data] dataset=a: ")
    assert "is no key" in refused(TOP, "[data]\ndataset=a")


def test_a_mistake_of_the_file_keeps_its_line_beside_overrides() -> None:
    text = DATA + "workers = -1\n"
    line = "x.toml:5: data.workers: -1 is out of range; at least 0"
    assert refused(text, "data.val=test", "seed=3") == line
    assert read(text, "data.workers=1").data == Data(dataset="digits", workers=1)  # mended


# --- flags --------------------------------------------------------------------------------------


def test_flags_win_over_the_section() -> None:
    recipe = read(TOP + "[decompose]\nratio = 0.5\nmin_rank = 2\n")
    changed = with_flags(recipe, "decompose", ratio="2/3", max_rank=8, scope=None)
    assert changed.decompose == Decompose(ratio="2/3", min_rank=2, max_rank=8)
    assert recipe.decompose == Decompose(ratio="0.5", min_rank=2)
    assert with_flags(recipe, "decompose", ratio=None) is recipe
    assert with_flags(recipe, "", seed=4).seed == 4


def test_a_flag_takes_the_place_of_other_keys() -> None:
    recipe = read(TOP + "[decompose]\nratio = 0.5\nmin_rank = 2\n")
    changed = with_flags(recipe, "decompose", instead_of={"ratio", "plan"}, energy=0.9)
    assert changed.decompose == Decompose(energy=0.9, min_rank=2)
    assert with_flags(recipe, "decompose", instead_of={"ratio"}, energy=None) is recipe


@pytest.mark.parametrize("recipe", [Recipe(model="a", output=Path("b")), None])
def test_flags_make_the_section(recipe: Recipe | None) -> None:
    recipe = recipe or Recipe.model_validate(resolved(Recipe(model="a", output=Path("b"))))
    assert with_flags(recipe, "decompose", ratio="1/3").decompose == Decompose(ratio="1/3")


@pytest.mark.parametrize(
    ("section", "flags", "line"),
    [
        (
            "decompose",
            {"ratio": "7"},
            "--ratio: 7 is out of range; a ratio is above 0 and at most 1",
        ),
        ("decompose", {"min_rank": -1}, "--min-rank: -1 is out of range; at least 0"),
        (
            "decompose",
            {"policy": "enery"},
            "--policy: 'enery' is none of energy, uniform, threshold; did you mean 'energy'?",
        ),
        ("decompose", {"max_rank": 1}, "--max-rank: max_rank 1 is below min_rank 2; change one"),
        ("decompose", {"threshold": 0.5}, "--threshold: needs policy = 'threshold' too"),
        (
            "decompose",
            {"pin": {"x(": 3}},
            "--pin: 'x(' is no regular expression "
            "(missing ), unterminated subpattern at position 1)",
        ),
        ("", {"seed": -1}, "--seed: -1 is out of range; at least 0"),
        ("eval", {"batch_size": 0}, "--batch-size: 0 is out of range; at least 1"),
        (
            "finetune",
            {"lr": 0.1},
            "with --lr: finetune: needs data; add [data] or [finetune.data]",
        ),
    ],
)
def test_a_wrong_flag(section: str, flags: dict[str, Any], line: str) -> None:
    recipe = read(TOP + "[decompose]\nmin_rank = 2\n")
    with pytest.raises(RequestError) as caught:
        with_flags(recipe, section, **flags)
    assert str(caught.value) == line


def test_a_recipe_from_flags_alone() -> None:
    recipe = from_flags(
        {"model": "a", "output": "b", "seed": None},
        {"decompose": {"ratio": "0.5", "pin": None}},
        ["decompose.samples=8", "decompose.ratio=1/3"],
    )
    assert recipe == Recipe(
        model="a", output=Path("b"), decompose=Decompose(ratio="1/3", samples=8)
    )


@pytest.mark.parametrize(
    ("top", "section", "overrides", "line"),
    [
        ({"model": ""}, {}, [], "MODEL: is empty"),
        ({"seed": -1}, {}, [], "--seed: -1 is out of range; at least 0"),
        ({}, {"samples": 0}, [], "--samples: 0 is out of range; at least 1"),
        ({}, {"samples": 1}, ["decompose.samples=0"],
         "--set decompose.samples=0: 0 is out of range; at least 1"),
        ({}, {}, ["decompse.samples=0"],
         "--set decompse.samples=0: decompse: unknown key; did you mean 'decompose'?"),
        ({}, {"calibrate": "train"}, [],
         "--calibrate: 'train' is the recipe's own data; add [data]"),
    ],
)  # fmt: skip
def test_wrong_flags_alone(
    top: dict[str, Any], section: dict[str, Any], overrides: list[str], line: str
) -> None:
    with pytest.raises(RequestError) as caught:
        from_flags({"model": "a", "output": "b"} | top, {"decompose": section}, overrides)
    assert str(caught.value) == line


# --- resolved, schema ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", [FULL, TOP])
def test_a_resolved_recipe_reads_back_the_same(text: str) -> None:
    recipe = read(text)
    stored = json.loads(json.dumps(resolved(recipe), allow_nan=False))
    assert Recipe.model_validate(stored) == recipe
    assert resolved(Recipe.model_validate(stored)) == stored


def test_a_resolved_recipe_has_every_key_in_plain_values() -> None:
    found = resolved(read(FULL))
    assert found["output"] == "runs/x"
    assert found["decompose"]["ratio"] == "2/3"
    assert found["decompose"]["plan"] == "plans/a.json"
    assert found["data"]["augment"]["scale"] == [0.5, 1.0]
    assert found["pretrain"]["loss"]["eps"] == 1e-3
    assert set(found["finetune"]) == set(Train.model_fields)


def test_the_schema_describes_every_key() -> None:
    found = schema()
    assert set(found["properties"]) == set(Recipe.model_fields)
    assert found["required"] == ["model", "output"]
    for model in [found, *found["$defs"].values()]:
        assert model["additionalProperties"] is False
        for name, field in model["properties"].items():
            assert field.get("description"), (model["title"], name)
    ratio = found["$defs"]["Decompose"]["properties"]["ratio"]
    assert {kind["type"] for kind in ratio["anyOf"]} == {"string", "number", "null"}


# --- fingerprints -------------------------------------------------------------------------------

OTHER: dict[str, Any] = {  # another value for every key of [pretrain], which has most keys
    "task": "unlabelled",
    "task_args": {"top": 1},
    "data": {"dataset": "other"},
    "epochs": 7,
    "steps": 7,
    "batch_size": 7,
    "opt": "sgd",
    "lr": 0.5,
    "min_lr": 1e-7,
    "warmup_lr": 1e-7,
    "warmup_epochs": 0.5,
    "sched": "step",
    "weight_decay": 0.5,
    "betas": [0.5, 0.5],
    "momentum": 0.5,
    "layer_decay": 0.5,
    "clip_grad": 0.5,
    "factor_lr": 0.5,
    "factor_decay": "product",
    "drop_path": 0.5,
    "drop_path_rule": "constant",
    "ema": 0.5,
    "precision": "bf16",
    "accumulate": 7,
    "channels_last": True,
    "compile": True,
    "checkpointing": True,
    "save_every": 7,
    "keep": 7,
    "result": "best",
    "log_every": 7,
    "eval_every": 7,
    "trackers": ["wandb"],
    "loss": {"feature": 0.5},
    "taps": ["x"],
    "taps_over": 0.5,
    "labels": False,
}
NO_EFFECT = {
    "compile", "checkpointing", "save_every", "keep", "log_every", "eval_every", "trackers",
}  # fmt: skip


def digest_of(recipe: Recipe, section: Any, inputs: str) -> str:
    return fingerprint(step_of(recipe, section), inputs)


def make(document: dict[str, Any]) -> Recipe:
    whole = {"model": "m", "output": "o", "data": {"dataset": "d"}, "pretrain": {}, "decompose": {}}
    return Recipe.model_validate(whole | document)


@pytest.mark.parametrize(
    ("result", "no_effect"), [("last", NO_EFFECT), ("best", NO_EFFECT - {"eval_every"})]
)
def test_which_keys_of_a_training_section_count(result: str, no_effect: set[str]) -> None:
    """Where the best evaluation gives the weights, it matters when there are evaluations."""
    assert set(OTHER) == set(Pretrain.model_fields)  # whoever adds a key decides on it
    before = digest_of(make({"pretrain": {"result": result}}), "pretrain", "x")
    same = {
        key
        for key, value in (OTHER | {"result": "best" if result == "last" else "last"}).items()
        if digest_of(make({"pretrain": {"result": result, key: value}}), "pretrain", "x") == before
    }
    assert same == no_effect


def test_the_fingerprint_of_a_run_to_its_last_weights() -> None:
    """Artefacts bear such digests: a change here has `pela run` train them all again."""
    recipe = make({"pretrain": {"epochs": 3, "eval_every": 2, "batch_size": 8}})
    whole = resolved(recipe)
    elsewhere = NO_EFFECT | {"task", "task_args", "data", "batch_size"}
    data = {key: value for key, value in whole["data"].items() if key != "workers"}
    parts = {
        "model": "m", "weights": "pretrained", "arch": None, "model_args": {}, "num_classes": None,
        "seed": 0, "task": "image-classification", "inputs": "x",
        "section": {k: v for k, v in whole["pretrain"].items() if k not in elsewhere},
        "data": data | {"batch_size": 8},
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    assert digest_of(recipe, "pretrain", "x") == digest


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"weights": "random"},
        {"arch": "a"},
        {"model_args": {"workers": 1}},  # an architecture's own word, not the data's
        {"num_classes": 3},
        {"seed": 1},
        {"task": "unlabelled"},
        {"task_args": {"top": 1}},
        {"data": {"dataset": "e"}},
        {"data": {"dataset": "d", "augment": {"mixup": 0.5}}},
        {"data": {"dataset": "d", "batch_size": 8}},
        {"pretrain": {"loss": {"eps": 0.5}}},
    ],
)
def test_what_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert digest_of(make(change), "pretrain", "x") != digest_of(make({}), "pretrain", "x")


@pytest.mark.parametrize(
    "change",
    [
        {"output": "elsewhere"},
        {"device": "cpu"},
        {"data": {"dataset": "d", "workers": 4}},
        {"decompose": {"ratio": "1/3"}},  # its result is the input, by its digest
        {"finetune": {"lr": 0.5}},
        {"eval": {"max_drop": 1.0}},
        {"pretrain": {"batch_size": 64, "task": "image-classification"}},  # what it had already
        {"pretrain": {"data": {"dataset": "d"}}},
    ],
)
def test_what_leaves_the_fingerprint_alone(change: dict[str, Any]) -> None:
    assert digest_of(make(change), "pretrain", "x") == digest_of(make({}), "pretrain", "x")


def test_the_input_and_the_step_count() -> None:
    recipe = make({"finetune": {}, "teacher": {}})
    prints = {
        digest_of(recipe, section, inputs)
        for section in ("pretrain", "decompose", "finetune")
        for inputs in ("x", "y")
    }
    assert len(prints) == 6
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in prints)
    assert digest_of(recipe, "finetune", "x") == digest_of(
        Recipe.model_validate(resolved(recipe)), "finetune", "x"
    )


def test_the_data_that_the_section_names_counts_and_no_other() -> None:
    own = {"dataset": "own"}
    one, two = (make({"pretrain": {"data": own}, "data": {"dataset": d}}) for d in ("d", "e"))
    assert digest_of(one, "pretrain", "x") == digest_of(two, "pretrain", "x")


def decomposed(section: dict[str, Any], data: dict[str, Any]) -> str:
    recipe = make({"decompose": section, "data": {"dataset": "d"} | data})
    return digest_of(recipe, "decompose", "x")


def test_decompose_counts_only_the_data_it_calibrates_on() -> None:
    assert decomposed({}, {}) == decomposed({}, {"dataset": "e"})
    used = {"calibrate": "train"}
    assert decomposed(used, {}) != decomposed({}, {})
    assert decomposed(used, {}) != decomposed(used, {"dataset": "e"})
    assert decomposed(used, {}) != decomposed(used, {"image_size": 8})
    assert decomposed(used, {}) == decomposed(used, {"batch_size": 8, "augment": {"mixup": 0.5}})


def test_one_ratio_in_two_spellings() -> None:
    assert decomposed({"ratio": 0.5}, {}) == decomposed({"ratio": "1/2"}, {})
    assert decomposed({"ratio": 0.5}, {}) != decomposed({"ratio": "0.51"}, {})


def test_the_data_that_the_drop_is_measured_on_counts() -> None:
    drop = {"max_drop": 1.0}
    before = decomposed(drop, {})
    for change in ({"dataset": "e"}, {"val": "v"}, {"image_size": 8}, {"augment": {"crop_pct": 1}}):
        assert decomposed(drop, change) != before
    assert decomposed({"max_drop": 2.0}, {}) != before
    assert decomposed({**drop, "task": "unlabelled"}, {}) != before
    for same in ({"train": "t"}, {"batch_size": 8}, {"augment": {"mixup": 0.5}}):
        assert decomposed(drop, same) == before
    # What is said in another place is the same data still.
    assert decomposed({**drop, "split": "v"}, {}) == decomposed(drop, {"val": "v"})
    assert decomposed({**drop, "data": {"dataset": "d"}}, {"dataset": "e"}) == before
    both = {**drop, "calibrate": "train"}
    assert decomposed(both, {"train": "t"}) != decomposed(both, {})


def test_no_ratio_is_half_unless_something_else_says_how_small() -> None:
    assert decomposed({"ratio": 0.5}, {}) == decomposed({}, {})
    assert Decompose(energy=0.9).budget is None
    assert Decompose(policy="threshold", threshold=0.9).budget is None
    assert Decompose(policy="threshold", threshold=0.9, ratio="0.5").budget == Fraction(1, 2)


def test_an_edited_plan_counts() -> None:
    plan = Path("plan.json")
    missing = decomposed({"plan": "plan.json"}, {})
    plan.write_text("{}")
    before = decomposed({"plan": "plan.json"}, {})
    plan.write_text("{ }")
    assert len({missing, before, decomposed({"plan": "plan.json"}, {})}) == 3


# --- the house ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(gallery.recipes()))
def test_every_recipe_that_comes_with_pela_is_valid(name: str) -> None:
    recipe = load(gallery.recipes()[name])
    assert Recipe.model_validate(resolved(recipe)) == recipe


def test_the_gallery_has_the_quickstart() -> None:
    file = gallery.recipes()["quickstart"]
    assert gallery.describe(file) == file.read_text().split("\n")[0].removeprefix("# ")


def test_reading_a_recipe_needs_no_heavy_library() -> None:
    Path("x.toml").write_text(FULL)
    code = (
        "import sys, pelacli.recipe.gallery, pelacli.recipe.reading as f;"
        "f.load('x.toml', ['seed=2']);"
        "print(sorted({'torch', 'numpy', 'timm', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    root = str(Path(gallery.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
