"""Pretrained weights by name, end to end, against a small hub on loopback."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import timm
import transformers
from safetensors.torch import load_file, save_file

TIMM_REPO = "timm/test_vit.r160_in1k"
NOBODY = "http://127.0.0.1:9"  # nothing listens there
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as fetching a snapshot takes."""

    root: Path

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api":
            self._info(self.root / "/".join(parts[2:4]), "/".join(parts[2:4]), parts, body)
        elif "resolve" in parts:
            at = parts.index("resolve")
            self._file(self.root / "/".join(parts[:at]) / "/".join(parts[at + 2 :]), body)
        else:
            self._send(404, b"", {}, body)

    def _info(self, repo: Path, name: str, parts: list[str], body: bool) -> None:
        if not repo.is_dir():
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        if "nope" in parts:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        files = sorted(p for p in repo.iterdir() if p.is_file())
        document: object = {
            "id": name,
            "sha": COMMIT,
            "siblings": [{"rfilename": p.name} for p in files],
        }
        if "tree" in parts:
            document = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": _digest(p)}
                for p in files
            ]
        text = json.dumps(document).encode()
        return self._send(200, text, {"Content-Type": "application/json"}, body)

    def _file(self, path: Path, body: bool) -> None:
        if not path.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        headers = {"ETag": f'"{_digest(path)}"', "X-Repo-Commit": COMMIT}
        return self._send(200, path.read_bytes(), headers, body)

    def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Handler", (Hub,), {"root": root})
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", root
    server.shutdown()


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


def test_a_timm_name_has_the_hubs_weights(hub, online, tmp_path):
    done = online("decompose", "test_vit", "--ratio", "0.7", "-o", "a", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"].startswith("test_vit")
    ours = load_file(tmp_path / "a" / "model.safetensors")
    theirs = load_file(hub[1] / TIMM_REPO / "model.safetensors")
    assert ours["patch_embed.proj.weight"].equal(theirs["patch_embed.proj.weight"])
    assert ours["head.weight"].equal(theirs["head.weight"])
    source = json.loads((tmp_path / "a" / "pela.json").read_text())["source"]
    assert source["digest"] == _digest(hub[1] / TIMM_REPO / "model.safetensors")


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
    for line, (model, says) in zip(done.stderr.splitlines(), REFUSED.items(), strict=True):
        assert line.startswith(f"pela: error: {model}: ")
        assert says in line


def test_no_hub_at_all_is_one_line_that_says_what_works(online):
    start = time.perf_counter()
    done = online("decompose", "vit_base", "--ratio", "0.5", address=NOBODY)
    assert time.perf_counter() - start < 60  # most of it is imports; no minutes of retries
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    for way in ("--weights random", "a local directory", "--arch"):
        assert way in done.stderr
