"""Upload an artefact to the Hugging Face hub, with a card that shows how to read it from there.

All files go in one commit, so that the repository has the whole artefact or what it had before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelacli.artefact import card, locating
from pelacli.console import file_progress, info, warn
from pelacli.errors import PelaError, RequestError
from pelacli.manifest import digests, document, evaluations, integrity
from pelacli.manifest.document import Manifest
from pelacli.messages import one_line
from pelacli.models import hub_progress
from pelacli.models.config_file import FILE as CONFIG
from pelacli.models.config_file import read as read_config
from pelacli.report.subject import Subject
from pelacli.steps import verify
from pelacli.system import bytes_done, own_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

_MAIN = "main"
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".ckpt")
_SIGN_IN = "sign in (`hf auth login`), or set HF_TOKEN"


@dataclass(frozen=True)
class Pushed:
    """What was uploaded.

    Attributes:
        url: of the commit.
        files: names in the repository.
    """

    repo: str
    revision: str
    url: str
    files: list[str]
    bytes: int
    private: bool


def run(ref: str, repo: str, *, private: bool = False, revision: str | None = None) -> Pushed:
    """Upload an artefact. A repository that does not exist is made, and so is a branch.

    The token is the one that the hub's client knows, by a login or from HF_TOKEN.

    Args:
        ref: an artefact, a run directory, which stands for its last step, or the hub's id of an
            artefact, with "@revision" where it is not of the main branch.
        repo: "owner/name". One that exists holds an artefact of pela or no model.
        private: make a new repository private; one that exists has to be.
        revision: branch; by default the main one.

    Raises:
        RequestError: no artefact, no token, a repository of another kind, no permission.
        PelaError: the artefact is damaged, or the hub can't be reached.
    """
    _check_name(repo)
    located = locating.whole(ref)
    path = located.path
    with file_progress(f"verifying {located.name}"):
        verified = verify.verify(path, located.name)
    verify.refuse_damaged([verified])
    manifest = document.read(path)
    names = _files(path, manifest)
    with _client(repo) as api:
        is_private = _open_repository(api, repo, private, revision)
        stale = _stale_files(api, repo, revision, names)
        text = _card(api, path, manifest, names, repo, revision)
        _say_paths(path, manifest)
        size = sum((path / name).stat().st_size for name in names)
        with _shown(f"uploading {len(names)} files to {repo}", size):
            url = _commit(api, path, names, text, stale, repo, revision)
    return Pushed(repo, revision or _MAIN, url, names, size, is_private)


@contextmanager
def _shown(description: str, size: int) -> Iterator[None]:
    """Show how far an upload is. The client tells nobody: what leaves the machine is looked at, so
    that it is true as far as nothing else is sent, and what the hub has already takes no time."""
    first = _sent()
    with file_progress(description), hub_progress.no_bars():
        if first is None:
            yield
        else:
            with bytes_done.looked_at("", size, lambda: (_sent() or first) - first):
                yield


def _sent() -> int | None:
    """Bytes that this machine has sent; None where the system does not say."""
    import psutil

    try:
        counted = psutil.net_io_counters()
    except (OSError, psutil.Error):
        return None
    return None if counted is None else int(counted.bytes_sent)


def _check_name(repo: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    owner, slash, name = repo.partition("/")
    if "@" in repo:
        raise RequestError(f"{repo}: give the branch with --revision {repo.partition('@')[2]}")
    try:
        validate_repo_id(repo)
    except HFValidationError:
        slash = ""
    if not (owner and slash and name):
        raise RequestError(f"{repo}: not a repository of the hub; give OWNER/NAME")


def _files(path: Path, manifest: Manifest) -> list[str]:
    """The names of the artefact's files; what else lies in its directory is somebody's own."""
    own = set(manifest.files or _names_of_older(path))
    own |= {document.FILE, card.FILE, evaluations.FILE}
    others = sorted(
        name for name in own_files.names_below(path) if name not in own and (path / name).is_file()
    )
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        info(f"{path / others[0]}{more}: not of the artefact, and stays here")
    return sorted(name for name in own if (path / name).is_file())


def _names_of_older(path: Path) -> Iterable[str]:
    """An older pela kept no record of the files: all but what is hidden and the checkpoints."""
    names = own_files.names_below(path)
    return (name for name in names if not name.startswith((".", "checkpoints/")))


def _open_repository(api: HfApi, repo: str, private: bool, revision: str | None) -> bool:
    """Make the repository and the branch, where they are not there yet.

    Returns:
        whether only those with permission see it.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        is_private = bool(api.model_info(repo).private)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private or None)
        is_private = private or bool(api.model_info(repo).private)
    if private and not is_private:
        raise RequestError(
            f"{repo}: is public; make it private in its settings on the hub, or leave --private out"
        )
    if revision not in (None, _MAIN):
        api.create_branch(repo, branch=revision or _MAIN, exist_ok=True)
    return is_private


def _stale_files(api: HfApi, repo: str, revision: str | None, names: Iterable[str]) -> list[str]:
    """Weights that are in the repository and not in this artefact: they would be read with it.

    Raises:
        RequestError: the repository holds a model that pela did not write.
    """
    remote = api.list_repo_files(repo, revision=revision)
    weights = [name for name in remote if name.endswith(_WEIGHTS)]
    if weights and document.FILE not in remote:
        raise RequestError(
            f"{repo}: holds a model that pela did not write ({weights[0]}); name another repository"
        )
    return sorted({*weights} - {*names})


def _card(
    api: HfApi,
    path: Path,
    manifest: Manifest,
    names: list[str],
    repo: str,
    revision: str | None,
) -> str:
    """The card as it is, where somebody has written in it; else with the hub's names, and with what
    was measured since."""
    file = path / card.FILE
    recorded = {
        name: record for name, record in (manifest.files or {}).items() if name == card.FILE
    }
    if file.is_file() and (not recorded or any(integrity.damages(path, recorded))):
        info(f"{file}: was changed, and goes as it is")
        return file.read_text(encoding="utf-8", errors="replace")
    if not manifest.source.licence:
        warn(
            f"the licence of {manifest.source.name} is not recorded: look it up, and whether it "
            "lets you pass this on; the card says so"
        )
    config = read_config(path, integrity.REMEDY) if CONFIG in names else {}
    shown = None if revision in (None, _MAIN) else revision
    reading = card.reading_of(config, names, name=repo, revision=shown)
    size = digests.weights_bytes(path)
    subject = Subject(repo, manifest, size, evaluations.read(path))
    return card.model_card(manifest, reading, subject, _base_model(api, manifest))


def _base_model(api: HfApi, manifest: Manifest) -> str | None:
    """The hub's id of the dense model, if everybody can see it there."""
    ref = manifest.source.model.partition("@")[0]
    if ref.count("/") != 1 or manifest.source.weights != "pretrained":
        return None
    try:
        return None if api.model_info(ref, token=False).private else ref
    except Exception:  # a path that looks like an id, a private model, a hub that is busy
        return None


def _say_paths(path: Path, manifest: Manifest) -> None:
    """Say that the record names paths of this machine, which others will be able to read."""
    named = sorted(
        {
            value
            for step in manifest.history
            for value in _texts(step.recipe)
            if os.path.isabs(value) or value.startswith("~")
        }
    )
    if named:
        more = f" and {len(named) - 1} more" if len(named) > 1 else ""
        warn(f"{path / document.FILE}: names paths of this machine: {named[0]}{more}")


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _commit(
    api: HfApi,
    path: Path,
    names: Iterable[str],
    text: str,
    stale: Iterable[str],
    repo: str,
    revision: str | None,
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    content = {name: path / name for name in names} | {card.FILE: text.encode()}
    operations = [
        *(CommitOperationAdd(name, data) for name, data in content.items()),
        *(CommitOperationDelete(name) for name in stale),
    ]
    done = api.create_commit(
        repo, operations, commit_message="Upload an artefact of pela", revision=revision
    )
    return str(done.commit_url)


@contextmanager
def _client(repo: str) -> Iterator[HfApi]:
    """The hub's client. While active, its errors are one line, which never holds the token.

    Raises:
        RequestError: there is no token, or the hub refuses the request.
        PelaError: the hub fails, or can't be reached.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    token = get_token()
    if token is None:
        raise RequestError(f"{repo}: the hub has to know who you are: {_SIGN_IN}")
    try:
        yield HfApi(token=token)
    except PelaError:
        raise
    except HfHubHTTPError as error:
        raise _refusal(repo, error, token) from None
    except Exception as error:  # the client's transport errors have no common ancestor of their own
        if isinstance(error, OSError) and error.filename is not None:
            raise  # a file of the artefact
        reason = one_line(str(error).replace(token, "…") or type(error).__name__, 120)
        raise PelaError(f"{repo}: the upload failed ({reason}); can the hub be reached?") from None


def _refusal(repo: str, error: HfHubHTTPError, token: str) -> PelaError:
    """What the hub's answer means."""
    status = error.response.status_code
    said = one_line((error.server_message or str(error)).replace(token, "…"), 160)
    if status == 401:
        return RequestError(f"{repo}: the hub does not take the token ({said}); {_SIGN_IN}")
    if status == 403:
        return RequestError(
            f"{repo}: the token may not write there ({said}); take one with write permission"
        )
    if status == 404:
        return RequestError(f"{repo}: the hub has no such repository or branch ({said})")
    if status < 500:
        return RequestError(f"{repo}: the hub refuses this ({said})")
    return PelaError(f"{repo}: the hub fails ({said}); try again later")
