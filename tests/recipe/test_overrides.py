"""``--set KEY=VALUE`` sets one key of a recipe, and is named where it is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_text import DATA, TOP, read, refused

from pelacli.recipe.data import Augment, Data


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
def test_an_override_sets_its_key(override: str, path: Sequence[str], value: Any) -> None:
    value_read: Any = read(DATA + "[pretrain]\nepochs = 3\n", override)
    for name in path:
        value_read = value_read[name] if isinstance(value_read, dict) else getattr(value_read, name)
    assert value_read == value
    assert type(value_read) is type(value) or isinstance(value, Path)


def test_an_override_leaves_the_rest_alone() -> None:
    text = DATA + "workers = 2\n[data.augment]\nmixup = 0.5\nhflip = 0.0\n"
    data = read(text, "data.augment.mixup=0.25", "data.augment.mixup=0.75").data
    expected = Data(dataset="digits", workers=2, augment=Augment(mixup=0.75, hflip=0.0))
    assert data == expected  # the last of two counts


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1))
def test_any_pattern_can_be_pinned(text: str) -> None:
    pattern = re.escape(text)
    section = read(TOP, f"decompose.pin.{json.dumps(pattern)}=3").decompose
    assert section is not None
    assert section.pin == {pattern: 3}


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
def test_a_wrong_override_is_named_in_place_of_a_line(override: str, line: str) -> None:
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


def test_an_override_of_two_lines_is_refused() -> None:
    assert refused(TOP, "[data]\ndataset=a").startswith("--set [data] dataset=a: ")
    assert "is no key" in refused(TOP, "[data]\ndataset=a")


def test_a_mistake_of_the_file_keeps_its_line_beside_overrides() -> None:
    text = DATA + "workers = -1\n"
    line = "x.toml:5: data.workers: -1 is out of range; at least 0"
    assert refused(text, "data.val=test", "seed=3") == line
    assert read(text, "data.workers=1").data == Data(dataset="digits", workers=1)  # mended
