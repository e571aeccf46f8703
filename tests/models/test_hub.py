"""Pretrained weights by name, end to end, against a small hub on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import timm
import transformers
from fake_hub import TOKEN, digest, serving
from safetensors.torch import load_file, save_file

from pelacli.manifest import document, evaluations, integrity
from pelacli.manifest.evaluations import EvaluationRecord

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
    """All lines but those that say what takes its time."""
    waits = ("loading torch …", " so far")
    return [line for line in text.splitlines() if not line.endswith(waits)]


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


# What is called, in this order → (exit code, what standard error says).
ON_THE_HUB = {
    "report me/small@v2 --json": (0, ""),
    "report me/small --json": (0, ""),
    "report me/small@v2 --sweep 0.9,0.8 --json": (0, ""),
    "report me/small@v2 --curves": (0, ""),
    "report me/small@v2 --html page.html": (0, ""),
    "report me/small --sweep 0.9,0.8": (2, "me/small: there are no stored spectra"),
    "report me/small --curves": (2, "me/small: there is no metrics.jsonl"),
    "report runs/nothing": (
        2,
        "runs/nothing: there is no such path, and the hub has no such model",
    ),
    "eval me/small@v2 --no-latency --json": (0, "made with, /not/here, is not here; give --data"),
    "eval me/small@v2 --against someone/tiny-bert --weights random --no-latency": (0, ""),
    "eval me/small@v2 --weights random --no-latency": (2, "--weights random: artefacts and files"),
    "decompose me/small@v2 --ratio 0.5": (2, "me/small@v2: is low-rank already; decompose the"),
    "verify me/small@v2 --json": (0, ""),
    "verify me/damaged": (1, "me/damaged: config.json: "),
    "verify me/small": (2, "me/small: no artefact is here"),
    "verify me/none": (2, "me/none: the hub has no such model"),
    "export me/small@v2 --to dense -o dense --json": (0, ""),
    "export me/small@nope --to dense -o x": (2, "the hub has no revision 'nope'"),
    "push me/small@v2 me/copy --json": (0, ""),
    "push me/small me/copy": (2, "me/small: not an artefact"),
    "push me/damaged me/other": (1, "me/damaged: config.json: "),
    "import c.safetensors --model someone/tiny-bert -o imported --json": (0, ""),
    "import c.safetensors --model me/small@v2 -o x": (2, "me/small@v2: is low-rank already; name"),
}


@pytest.mark.slow
def test_every_command_takes_the_id_and_revision_of_an_artefact_on_the_hub(hub, online, tmp_path):
    """All in one process, which takes seconds to import."""
    made = online("decompose", "someone/tiny-bert", "--ratio", "0.8", "-o", "a", "-q")
    assert made.returncode == 0, made.stderr
    artefact, repositories = tmp_path / "a", hub[1] / "me"
    manifest = document.read(artefact)
    manifest.history[-1].recipe["data"] = {"dataset": "/not/here"}
    metrics = '{"step": 1, "epoch": 1.0, "loss": 0.5}\n'
    (artefact / "metrics.jsonl").write_text(metrics)
    manifest.files = integrity.files_of(artefact)
    (artefact / "pela.json").write_text(document.dumps(manifest))
    evaluations.append(artefact, EvaluationRecord(data="reviews", metrics={"accuracy": 91.0}))
    for name in ("small@v2", "damaged"):
        shutil.copytree(artefact, repositories / name)
    (repositories / "damaged" / "config.json").write_text("{}")
    shutil.copytree(hub[1] / "someone" / "tiny-bert", repositories / "small")
    pairs(hub[1] / "someone" / "tiny-bert", tmp_path / "c.safetensors")
    (tmp_path / "runs").mkdir()
    script = f"""
import os
import sys
import torch
import pelacli
from transformers import BertModel
from pelacli.__main__ import main
from pelacli.console import Progress
from pelacli.system import bytes_done

os.environ["HF_TOKEN"] = {TOKEN!r}
parts, bar = [], Progress("opening")
begin, reach = bar.begin, bar.reach
bar.begin = lambda part, *how: (parts.append(part), begin(part, *how))
bar.reach = lambda done, total: (parts.append((done, total)), reach(done, total))
ours = pelacli.load("a")
with bytes_done.watched_by(bar):
    theirs = pelacli.load("me/small@v2")
weights = os.path.getsize("a/model.safetensors")
assert parts[0] == "fetching" and parts[-4:] == ["checking", "", "reading", ""], parts
assert any(known[0] == known[1] >= weights for known in parts if len(known) == 2), parts
for name, tensor in ours.state_dict().items():
    assert torch.equal(theirs.state_dict()[name], tensor), name
assert BertModel.from_pretrained("me/small", revision="v2").pooler.dense.rank > 0
assert pelacli.verify("me/small@v2").whole and not pelacli.verify("me/damaged").whole
assert pelacli.export("me/small@v2", "by_python", to="dense").difference < 1e-4
assert pelacli.import_checkpoint("c.safetensors", "i", model="someone/tiny-bert").ranks
for words in {list(ON_THE_HUB)}:
    sys.argv = ["pela", *words.split()]
    code = 0
    print("\\0", words, file=sys.stdout, flush=True)
    print("\\0", words, file=sys.stderr, flush=True)
    try:
        main()
    except SystemExit as exit_:
        code = exit_.code or 0
    print("\\1", code, file=sys.stderr, flush=True)
"""
    done = online(script=script)
    assert done.returncode == 0, done.stderr
    outs = dict(part.split("\n", 1) for part in done.stdout.split("\0 ")[1:])
    errs = dict(part.split("\n", 1) for part in done.stderr.split("\0 ")[1:])
    for words, (code, says) in ON_THE_HUB.items():
        err, _, exit_code = errs[words].partition("\1 ")
        assert int(exit_code) == code, (words, err)
        assert re.search(says, " ".join(err.split())), (words, err)
        assert "Traceback" not in err
        assert "(unexpected" not in err
    json_of = {words: json.loads(out) for words, out in outs.items() if words.endswith("--json")}
    (low,), (dense,) = (json_of[f"report {name} --json"] for name in ("me/small@v2", "me/small"))
    (evaluated,) = json_of["eval me/small@v2 --no-latency --json"]
    assert low["params"]["after"] == evaluated["params"] < dense["params"]["after"]
    assert low["bytes"] == (artefact / "model.safetensors").stat().st_size
    assert [entry["metrics"] for entry in low["evaluations"]] == [{"accuracy": 91.0}]
    (verified,) = json_of["verify me/small@v2 --json"]
    assert (verified["artefact"], verified["whole"]) == ("me/small@v2", True)
    assert (tmp_path / "page.html").is_file()
    copied = {file.name for file in (repositories / "copy").iterdir()}
    assert {file.name for file in artefact.iterdir()} <= copied
    assert not (tmp_path / "x").exists()


def pairs(model, path):
    """A checkpoint of a model with one layer as two matrices."""
    tensors = load_file(model / "model.safetensors")
    weight = tensors.pop("pooler.dense.weight")
    tensors |= {"pooler.dense.V": weight[:4].clone(), "pooler.dense.U": weight[:, :4].clone()}
    save_file(tensors, path)
