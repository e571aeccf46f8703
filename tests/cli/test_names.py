"""Names that no file can have, places that can't be written to, and empty words of a command line:
one line, exit code 2, and every file as it was."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
import transformers
from refusals import refused as refused

from pelacli.cli import failures
from pelacli.errors import RequestError
from pelacli.system import files

RANDOM = ("decompose", "test_vit", "--weights", "random", "--ratio", "0.5")
LONG = "n" * 256


@pytest.mark.parametrize(
    "args",
    [
        ("decompose", LONG, "--ratio", "0.5"),
        ("decompose", f"{LONG}.toml", "--ratio", "0.5"),
        ("decompose", f"{LONG}.safetensors", "--arch", "test_vit", "--ratio", "0.5"),
        ("eval", LONG),
        ("eval", "test_vit", "--weights", LONG),
        ("eval", "test_vit", "--weights", "random", "--data", LONG),
        ("eval", "test_vit", "--weights", "random", "--against", LONG),
        ("report", LONG),
        ("report", LONG, "--curves"),
        ("report", LONG, "--sweep", "0.9,0.5"),
        ("run", LONG),
        ("recipes", "copy", "quickstart", LONG),
        (*RANDOM, "-o", LONG),
        (*RANDOM, "-o", "n" * 245),  # its temporary neighbour's name would be too long
        (*RANDOM, "-o", "/".join(["d" * 200] * 30)),
        (*RANDOM, "--spectra", LONG),
        ("decompose", "test_vit", "--weights", "random", "--plan", LONG),
        (*RANDOM, "--calibrate", LONG),
    ],
)
def test_a_name_that_is_too_long_is_refused(refused, args):
    line = refused(*args).lower()
    assert "too long" in line
    assert len(line) < 500


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("decompose", "", "--ratio", "0.5"), "argument 2: is empty"),
        (("eval", "test_vit", "--data", ""), "--data: is empty"),
        (("eval", "test_vit", "--data="), "--data: is empty"),
        ((*RANDOM, "-o", ""), "-o: is empty"),
        ((*RANDOM, "--set", ""), "--set: is empty"),
        ((*RANDOM, "--set", "seed="), "--set seed=: expected a whole number"),
        ((*RANDOM, "--set", "decompose.calibrate="), "--set decompose.calibrate=: is empty"),
        ((*RANDOM, "--pin", "=3"), "is empty, and would match every name"),
        ((*RANDOM, "--set", r'decompose.calibrate="a\u0000b"'), "holds a NUL character"),
        ((*RANDOM, "--calibrate", "~no-such-user/x"), "there is no such home directory"),
        (
            ("eval", "test_vit", "--weights", "random", "--data", "~no-such-user/x"),
            "--data: '~no-such-user/x'",
        ),
        (("decompose", "r.toml/below", "--ratio", "0.5"), "r.toml is a file, not a directory"),
        ((*RANDOM, "-o", "r.toml/below"), "r.toml is a file, not a directory"),
        ((*RANDOM, "-o", "r.toml"), "exists and is not an artefact"),
        ((*RANDOM, "--spectra", "r.toml/below"), "r.toml is a file, not a directory"),
        ((*RANDOM, "--spectra", "a", "-o", "a"), "is the artefact's directory too"),
        (
            ("decompose", "test_vit", "--weights", "random", "--plan", "."),
            ".: can't be read: Is a directory",
        ),
        (("recipes", "copy", "quickstart", "r.toml/below"), "can't be written"),
    ],
)
def test_a_name_that_means_nothing_is_refused(refused, here, args, says):
    (here / "r.toml").write_text('model = "test_vit"\n')
    assert says in refused(*args)


def test_a_tilde_that_the_shell_has_left_is_the_home_directory(pela, here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    assert pela(*RANDOM, "--output=~/runs/a")[0] == 0
    assert (here / "home/runs/a/pela.json").is_file()
    assert pela("report", "~/runs/a")[0] == 0
    (here / "r.toml").write_text(
        'model = "test_vit"\nweights = "random"\noutput = "~/runs/r"\n[decompose]\n'
    )
    assert pela("run", "r.toml")[0] == 0
    assert (here / "home/runs/r/decompose/pela.json").is_file()
    assert not (here / "~").exists()


@pytest.mark.parametrize("output", ["dense", "dense/", "./dense", "link", "dense/below"])
def test_the_model_that_is_read_is_not_written_over(refused, here, artefact, output):
    shutil.move("a", "dense")
    (here / "link").symlink_to("dense")
    line = refused("decompose", "dense", "--ratio", "0.5", "-o", output)
    assert "choose another output" in line


def test_a_place_that_can_not_be_written_to_is_refused_before_any_work(here, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(RequestError, match="can't be written to; choose another output"):
        files.check_place(here / "a")


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "x.json"),
         "x.json: permission denied; change its permissions, or choose another place", 2),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"),
         "x: is a directory; name a file", 2),
        (OSError(errno.EROFS, "Read-only file system", "x"),
         "x: read-only file system; choose a place that can be written to", 2),
        (OSError(errno.ENOSPC, "No space left on device"),
         "no space left on device; free some space, or choose another disk", 1),
        (MemoryError(), "the memory is not enough (MemoryError); take smaller batches", 1),
        (RuntimeError("unable to mmap 9 bytes from file <m>: Cannot allocate memory (12)"),
         "the memory is not enough (unable to mmap", 1),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
         "the memory is not enough ([enforce fail]", 1),
        (KeyboardInterrupt(), "interrupted", 130),
        (KeyError("x"), "KeyError: 'x' (unexpected; --debug shows where)", 1),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_said_with_the_remedy(error, message, code):
    failure = failures.describe(error)
    assert failure.message.startswith(message)
    assert failure.exit_code == code


def test_weights_that_config_json_does_not_fit_are_named_and_no_report_is_spoken_of(refused, here):
    """transformers says "look at the above report", and none is above."""
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        vocab_size=20,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(here / "bert")
    file = here / "bert" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 64}))
    line = refused("decompose", "bert", "--ratio", "0.5")
    assert "encoder.layer.0.intermediate.dense.bias: is [32] in the weights, and [64]" in line
    assert "above" not in line
