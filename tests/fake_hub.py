"""A small hub on loopback: as much of its protocol as fetching a snapshot, and pushing one, takes.

A repository is a folder of the root, ``owner/name``; a branch other than the main one is a folder
beside it, ``owner/name@branch``. A file ``.private`` makes it private and ``.gated`` gated.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

TOKEN = "hf_may_write"
READER = "hf_may_read_only"


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """The address of a hub whose repositories lie in a folder."""
    handler = type("Handler", (Hub,), {"root": root})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@contextmanager
def in_this_process(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While active, what this process sends to the hub goes to that of a folder, with a token that
    may write. What it fetches needs a process of its own: there the address is read at import."""
    with serving(root) as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _commit_of(folder: Path) -> str:
    """A branch has one commit, whose name does not follow from what is in it."""
    return hashlib.sha1(f"{folder.parent.name}/{folder.name}".encode()).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers requests out of the root."""

    root: Path

    def do_HEAD(self) -> None:
        self._read(body=False)

    def do_GET(self) -> None:
        self._read(body=True)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length)
        if len(content) < length:  # whoever sent it was killed on the way
            return None
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if self._token not in (TOKEN, READER):
            return self._refuse(401, "Invalid username or password.")
        if self._token == READER:
            return self._refuse(403, "You don't have the rights to write here")
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(content))
        name, verb, branch = "/".join(parts[2:4]), parts[4], "/".join(parts[5:])
        if not (self.root / name).is_dir():
            return self._missing()
        if verb == "branch":
            if not self._folder(name, branch).is_dir():
                shutil.copytree(self._folder(name), self._folder(name, branch))
            return self._json({})
        if verb == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(content)["files"]
            ]
            return self._json({"files": files})
        return self._commit(name, branch, content)

    @property
    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _folder(self, name: str, revision: str = "main") -> Path:
        """Of a branch, or of a commit."""
        owner = (self.root / name).parent
        folders = [self.root / name, *owner.glob(f"{Path(name).name}@*")]
        commits = {_commit_of(folder): folder for folder in folders}
        by_name = self.root / (name if revision == "main" else f"{name}@{revision}")
        return commits.get(revision, by_name)

    def _create(self, request: dict[str, Any]) -> None:
        name = f"{request['organization']}/{request['name']}"
        self._folder(name).mkdir(parents=True)
        # The older clients say it in the first way, the newer in the second.
        if request.get("private") or request.get("visibility") == "private":
            (self._folder(name) / ".private").touch()
        self._json({"url": f"{self._address}/{name}", "name": name})

    @property
    def _address(self) -> str:
        return f"http://{self.headers['Host']}"

    def _commit(self, name: str, branch: str, content: bytes) -> None:
        folder = self._folder(name, branch)
        for line in map(json.loads, content.splitlines()):
            file = folder / line["value"].get("path", "")
            if line["key"] == "file":
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(line["value"]["content"]))
            elif line["key"] == "deletedFile":
                file.unlink()
        commit = _commit_of(folder)
        url = f"{self._address}/{name}/commit/{commit}"
        self._json({"success": True, "commitUrl": url, "commitOid": commit})

    def _read(self, body: bool) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api":
            self._info("/".join(parts[2:4]), parts[4:], body)
        elif "resolve" in parts:
            at = parts.index("resolve")
            folder = self._folder("/".join(parts[:at]), parts[at + 1])
            self._file(folder / "/".join(parts[at + 2 :]), _commit_of(folder), body)
        else:
            self._send(404, b"", {}, body)

    def _info(self, name: str, rest: list[str], body: bool) -> None:
        branch = rest[1] if len(rest) > 1 else "main"
        folder = self._folder(name, branch)
        if not (self.root / name).is_dir():
            return self._missing(body)
        if (self.root / name / ".gated").exists() and self._token != TOKEN:
            headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": f"{name} is gated"}
            return self._send(403, b"{}", headers, body)
        private = (self.root / name / ".private").exists()
        if private and self._token not in (TOKEN, READER):
            return self._missing(body)
        if not folder.is_dir():
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        found = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
        files = {p.relative_to(folder).as_posix(): p for p in sorted(found)}
        if "tree" in rest:
            rows = [
                {"type": "file", "path": name, "size": p.stat().st_size, "oid": digest(p)}
                for name, p in files.items()
            ]
            return self._json(rows, body)
        siblings = [{"rfilename": name} for name in files]
        about = {"id": name, "sha": _commit_of(folder), "private": private, "siblings": siblings}
        return self._json(about, body)

    def _file(self, path: Path, commit: str, body: bool) -> None:
        if not path.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        headers = {"ETag": f'"{digest(path)}"', "X-Repo-Commit": commit}
        return self._send(200, path.read_bytes(), headers, body)

    def _json(self, document: object, body: bool = True) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"}, body)

    def _missing(self, body: bool = True) -> None:
        self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def _refuse(self, code: int, message: str) -> None:
        self._send(code, b"{}", {"X-Error-Message": message}, True)

    def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass
