"""Fetch a repository from the Hugging Face hub, as a local directory."""

from __future__ import annotations

import glob
import logging
from collections.abc import Sequence
from enum import Enum, auto
from pathlib import Path

from pelacli.errors import PelaError, RequestError
from pelacli.manifest import digests, document, evaluations
from pelacli.messages import one_line
from pelacli.system import bytes_done

# Configurations, processors, tokenizers: everything small a model directory may hold. And what an
# artefact records of itself, for `pela report`.
_SIDE_FILES = [
    "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.codes", "1_Pooling/*",
    "LICENSE*", "NOTICE*", "README.md", evaluations.FILE, "metrics.jsonl", "spectra.safetensors",
]  # fmt: skip
# Weights in folders are other forms of the model, except those of sentence-transformers' modules,
# whose folders begin with their number ("2_Dense").
_OTHER_WEIGHTS = ["[!0-9]*/*.safetensors", "open_clip*.safetensors"]
_OFFLINE = (
    "what works without it: --weights random, a local directory, or a safetensors file with --arch"
)


class Files(Enum):
    """What of an artefact on the hub is fetched."""

    SMALL = auto()  # all but the weights
    WEIGHTS = auto()  # what a model is opened from
    ALL = auto()  # every file that its manifest records, and all that would be read as its weights


def is_id(ref: str) -> bool:
    """Whether a reference can only be "owner/name", perhaps with "@revision", of the hub."""
    if ref.partition("@")[0].count("/") != 1 or ref.startswith((".", "/", "~")):
        return False
    is_file = Path(ref).suffix in (".safetensors", ".toml") or Path(ref).parent.is_file()
    return not is_file and not Path(ref).exists()


def artefact(ref: str, files: Files) -> Path | None:
    """The local copy of an artefact that lies on the hub.

    Args:
        ref: what a user calls the model.
        files: those that are fetched.

    Returns:
        its directory in the hub's cache; None where the reference is no hub id, or that of another
        model.

    Raises:
        RequestError, PelaError: as `fetch`.
    """
    if not is_id(ref):
        return None
    repo = bare(ref)
    folder = _small_files(repo)
    if not document.is_artefact(folder):
        return None
    if files is Files.SMALL:
        return folder
    return fetch(repo, weights=True) if files is Files.WEIGHTS else _all_files(repo, folder)


def _all_files(repo: str, small: Path) -> Path:
    """The directory of an artefact with all its files.

    Args:
        small: where its small files are.
    """
    try:
        recorded = document.read(small).files or {}
    except RequestError:  # it is damaged, which `pela verify` says in its own words
        recorded = {}
    names = [glob.escape(name) for name in recorded]
    return _download(repo, [*_SIDE_FILES, digests.WEIGHTS, *names], [])


def _small_files(repo: str) -> Path:
    """`fetch` without weights, of what may also be the path of a directory that is not there.

    Raises:
        RequestError, PelaError: as `fetch`; they say that there is no such path, where that is what
            may have been meant.
    """
    try:
        return fetch(repo, weights=False)
    except PelaError as error:
        # A remedy for the hub is none for a path.
        reason = str(error).removeprefix(f"{repo}: ").partition("; ")[0]
        if not Path(repo).parent.is_dir() or not reason.startswith("the hub"):
            raise
        raise RequestError(f"{repo}: there is no such path, and {reason}") from None


def bare(ref: str) -> str:
    """A hub id without timm's prefix."""
    return ref.removeprefix("hf-hub:").removeprefix("hf_hub:")


def fetch(repo: str, *, weights: bool, file: str | None = None) -> Path:
    """Download a repository (or find it in the cache) and return its directory.

    ``snapshot_download`` and not ``hf_hub_download``: the latter retries for half a minute where
    there is no network at all.

    Args:
        repo: "owner/name", optionally "owner/name@revision".
        weights: also fetch the safetensors files; pickles are never fetched.
        file: fetch this weights file only.

    Raises:
        RequestError: there is no such repository, or it has no safetensors.
        PelaError: the hub can't be reached.
    """
    patterns = [*_SIDE_FILES, *([file or "*.safetensors"] if weights else [])]
    folder = _download(repo, patterns, [] if file else _OTHER_WEIGHTS)
    if weights and not any(folder.glob(file or "*.safetensors")):
        raise RequestError(
            f"{repo}: has no safetensors weights, and pela never unpickles; "
            "convert the checkpoint to safetensors first"
        )
    return folder


def _download(repo: str, patterns: Sequence[str], ignored: Sequence[str]) -> Path:
    """Bring the files of a repository that match into the cache, and return its directory.

    Raises:
        RequestError, PelaError: as `fetch`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from pelacli.models.hub_progress import no_bars, silent

    name, _, revision = repo.partition("@")
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    try:
        with no_bars(), bytes_done.part("fetching", None):
            return Path(
                snapshot_download(
                    name,
                    revision=revision or None,
                    allow_patterns=[*patterns],
                    ignore_patterns=[*ignored],
                    tqdm_class=silent(),
                )
            )
    except HFValidationError:
        raise RequestError(f"{repo}: not a model name, a hub id or a path that exists") from None
    except GatedRepoError:
        raise RequestError(
            f"{repo}: the hub asks for permission; accept the model's terms and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise RequestError(
            f"{repo}: the hub has no such model (or HF_TOKEN may not see it)"
        ) from None
    except RevisionNotFoundError:
        raise RequestError(f"{repo}: the hub has no revision {revision!r} of this model") from None
    except LocalEntryNotFoundError:
        raise PelaError(
            f"{repo}: the hub can't be reached, and its cache doesn't have it; {_OFFLINE}"
        ) from None
    except Exception as error:  # the client's transport errors have no common ancestor of their own
        raise PelaError(
            f"{repo}: the hub can't be reached ({one_line(error, 120)}); {_OFFLINE}"
        ) from None
