"""Whether the files of an artefact are those that were written.

The manifest holds the size and the SHA-256 of each file beside it. Older artefacts have no such
record, and nothing can be said of them. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from pelacli.console import warn_once
from pelacli.errors import RequestError
from pelacli.manifest import digests, document, evaluations
from pelacli.manifest.document import FileRecord, Manifest
from pelacli.system import bytes_done, own_files

REMEDY = "copy the artefact again, or make it anew (`pela run RECIPE` does its step again)"
# What people write in themselves, and no model is read from.
FREE = ("README.md", "metrics.jsonl", evaluations.FILE)
_SPECTRA = "spectra.safetensors"  # plans are made from them; they name the model by its path
_CONFIG = "config.json"
_SKIP = "PELA_SKIP_DIGESTS"


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written, and in what way."""

    file: str
    what: str


def files_of(directory: Path) -> dict[str, FileRecord]:
    """The record of all files of an artefact that is about to get its manifest."""
    names = sorted(own_files.names_below(directory), key=PurePath)  # a folder's files together
    files = {name: directory / name for name in names if name != document.FILE}
    files = {name: file for name, file in files.items() if file.is_file()}
    with bytes_done.part("hashing", digests.bytes_of(files.values())):
        return {
            name: FileRecord(size=file.stat().st_size, sha256=digests.digest_file(file))
            for name, file in files.items()
        }


def digest(manifest: Manifest) -> str | None:
    """SHA-256 of all that a model is opened from: every file but logs, the card and the spectra,
    and the manifest's layers. The same recipe, data, seed, versions, device and threads give the
    same one, wherever and whenever they do; seconds, paths and dates are no part of it. None for
    an artefact of an older pela.
    """
    if manifest.files is None:
        return None
    files = {
        name: record.sha256 for name, record in _read_files(manifest).items() if name != _SPECTRA
    }
    layers = [layer.model_dump(mode="json") for layer in manifest.layers]
    content = {"files": files, "layers": layers, "library": manifest.library, "tied": manifest.tied}
    return digests.digest_json(content)


def damages(
    directory: Path, files: Mapping[str, FileRecord], *, sizes_only: bool = False
) -> Iterator[Damage]:
    """What is missing, or differs from its record.

    Args:
        files: name → record of those that are looked at.
        sizes_only: read no content.
    """
    size = 0 if sizes_only else sum(record.size for record in files.values())
    with bytes_done.part("checking", size):
        for name, record in files.items():
            what = _damage(directory, name, record, sizes_only)
            if what is not None:
                yield Damage(name, what)


def _damage(directory: Path, name: str, record: FileRecord, sizes_only: bool) -> str | None:
    file = directory / name
    if not file.exists() and not file.is_symlink():
        return "is missing"
    try:
        own_files.check(directory, file)
        size = file.stat().st_size
        if size != record.size:
            return f"has {size:,} bytes, and {record.size:,} were written"
        if not sizes_only and digests.digest_file(file) != record.sha256:
            return "its content is not what was written (SHA-256)"
    except RequestError as error:
        return str(error).removeprefix(f"{file}: ")
    except OSError as error:
        return f"can't be read ({error.strerror})"
    return None


def check(directory: Path, manifest: Manifest, *, sizes_only: bool = False) -> None:
    """Refuse an artefact whose weights are not those that were written, and say so of other files,
    which a user may have changed. ``PELA_SKIP_DIGESTS=1`` leaves it at the sizes.

    Where config.json is another one too, a program has saved its model into the directory, as
    ``save_pretrained`` does, and that is said only.

    Args:
        sizes_only: read no content; the sizes are compared.

    Raises:
        RequestError: naming the first damaged file of weights.
    """
    sizes_only = sizes_only or os.environ.get(_SKIP, "0") not in ("", "0")
    files = _needed_files(directory, manifest)
    changed = list(damages(directory, files, sizes_only=sizes_only))
    saved_anew = any(damage.file == _CONFIG for damage in changed)
    for damage in changed:
        if damage.file.endswith(".safetensors") and not saved_anew:
            raise RequestError(f"{directory / damage.file}: {damage.what}; {REMEDY}")
    if changed:
        first, more = changed[0], len(changed) - 1
        others = f" (and {more} more files)" if more else ""
        warn_once(
            f"changed files of {directory}",
            f"{directory / first.file}: {first.what}{others}; `pela verify` says more",
        )


def first_damage(directory: Path, manifest: Manifest) -> Damage | None:
    """The first damage of an artefact's files that a step could read; None where it is whole."""
    return next(damages(directory, _needed_files(directory, manifest)), None)


def _needed_files(directory: Path, manifest: Manifest) -> dict[str, FileRecord]:
    """The records of the files that a step reads. Spectra may be missing: no model needs them."""
    files = _read_files(manifest)
    if not (directory / _SPECTRA).exists():
        files.pop(_SPECTRA, None)
    return files


def _read_files(manifest: Manifest) -> dict[str, FileRecord]:
    """The records of the files that something is read from."""
    return {name: f for name, f in (manifest.files or {}).items() if name not in FREE}
