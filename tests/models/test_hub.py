"""Pretrained weights by name, end to end, against a small hub on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import timm
import transformers
from fake_hub import digest, serving
from safetensors.torch import load_file, save_file

TIMM_REPO = "timm/test_vit.r160_in1k"
NOBODY = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    vit = root / TIMM_REPO
    vit.mkdir(parents=True)
    model = timm.create_model("test_vit")
    save_file(model.state_dict(), vit / "model.safetensors")
    timm.models._hub.save_config_for_hf(model, str(vit / "config.json"))
    bert = transformers.BertModel(
        transformers.BertConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            vocab_size=50,
        )
    )
    bert.save_pretrained(root / "someone" / "tiny-bert")
    bert.save_pretrained(root / "sentence-transformers" / "all-MiniLM-L6-v2")
    pickled = root / "someone" / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((root / "someone/tiny-bert/config.json").read_text())
    (pickled / "pytorch_model.bin").write_bytes(b"never read")
    with serving(root) as address:
        yield address, root


@pytest.fixture
def online(hub, tmp_path):
    """pela in a process of its own, as the hub's address is read once at import."""

    def call(
        *args: str, address: str = hub[0], script: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache")}
        return subprocess.run(
            [sys.executable, *(["-c", script] if script else ["-m", "pelacli", *args])],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return call


@pytest.mark.slow
def test_a_timm_name_has_the_hubs_weights(hub, online, tmp_path):
    done = online("decompose", "test_vit", "--ratio", "0.7", "-o", "a", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"].startswith("test_vit")
    ours = load_file(tmp_path / "a" / "model.safetensors")
    theirs = load_file(hub[1] / TIMM_REPO / "model.safetensors")
    assert ours["patch_embed.proj.weight"].equal(theirs["patch_embed.proj.weight"])
    assert ours["head.weight"].equal(theirs["head.weight"])
    source = json.loads((tmp_path / "a" / "pela.json").read_text())["source"]
    assert source["digest"] == digest(hub[1] / TIMM_REPO / "model.safetensors")


@pytest.mark.slow
def test_a_transformers_id_by_its_short_name(hub, online, tmp_path):
    full = "sentence-transformers/all-MiniLM-L6-v2"
    done = online("decompose", "minilm", "--ratio", "0.9", "-o", "a", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == full
    ours = load_file(tmp_path / "a" / "model.safetensors")
    theirs = load_file(hub[1] / full / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    assert ours[name].equal(theirs[name])
    # what was fetched once needs no hub
    args = ("decompose", full, "--ratio", "0.9", "--dry-run", "--json")
    again = online(*args, address=NOBODY)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["layers"] == json.loads(done.stdout)["layers"]


REFUSED = {
    "someone/nothing": "the hub has no such model",
    "someone/pickled": "pela never unpickles",
    "someone/tiny-bert@nope": "the hub has no revision 'nope'",
    "not a name/at all": "not a model name",
}


def errors(text):
    """All lines but the one that is written while torch is loaded."""
    return [line for line in text.splitlines() if line != "loading torch …"]


def test_what_the_hub_can_not_give(online):
    """All in one process, which takes seconds to import."""
    script = f"""
import sys
from pelacli.__main__ import main
for model in {list(REFUSED)}:
    sys.argv = ["pela", "decompose", model, "--ratio", "0.5"]
    try:
        main()
    except SystemExit as exit_:
        print(exit_.code)
"""
    done = online(script=script)
    assert done.stdout.split() == ["2"] * len(REFUSED), done.stderr
    for line, (model, says) in zip(errors(done.stderr), REFUSED.items(), strict=True):
        assert line.startswith(f"pela: error: {model}: ")
        assert says in line


def test_no_hub_at_all_is_one_line_that_says_what_works(online):
    start = time.perf_counter()
    done = online("decompose", "vit_base", "--ratio", "0.5", address=NOBODY)
    assert time.perf_counter() - start < 60  # most of it is imports; no minutes of retries
    assert done.returncode == 1
    assert len(errors(done.stderr)) == 1
    for way in ("--weights random", "a local directory", "--arch"):
        assert way in done.stderr


def test_an_artefact_of_the_hub_is_opened_by_its_id_and_revision(hub, online, tmp_path):
    """All in one process, which takes seconds to import."""
    made = online("decompose", "someone/tiny-bert", "--ratio", "0.8", "-o", "a", "-q")
    assert made.returncode == 0, made.stderr
    shutil.copytree(tmp_path / "a", hub[1] / "me" / "small@v2")
    shutil.copytree(hub[1] / "someone" / "tiny-bert", hub[1] / "me" / "small")
    script = """
import sys
import torch
import pelacli
from transformers import BertModel
from pelacli.__main__ import main

ours, theirs = pelacli.load("a"), pelacli.load("me/small@v2")
for name, tensor in ours.state_dict().items():
    assert torch.equal(theirs.state_dict()[name], tensor), name
assert BertModel.from_pretrained("me/small", revision="v2").pooler.dense.rank > 0
for words in (
    "report me/small@v2 --json", "eval me/small@v2 --no-latency --json",
    "decompose me/small@v2 --ratio 0.5", "report me/small --json",
):
    sys.argv = ["pela", *words.split()]
    try:
        main()
    except SystemExit as exit_:
        print(words, exit_.code, file=sys.stderr)
"""
    done = online(script=script)
    err = done.stderr.splitlines()
    assert done.returncode == 0, done.stderr
    assert "pela: error: me/small@v2: is low-rank already; decompose the dense model" in err
    codes = [line.split()[-1] for line in err if line.startswith(("report", "eval", "decompose"))]
    assert codes == ["0", "0", "2", "0"]
    rows = [json.loads(text) for text in done.stdout.replace("]\n[", "]\0[").split("\0")]
    low, evaluated, dense = (document[0] for document in rows)
    assert low["params"]["after"] == evaluated["params"] < dense["params"]["after"]
