"""Compare artefacts with what was written: each file's digest, the manifest, missing files and
files that are new. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from safetensors import SafetensorError, safe_open

from pelacli.artefact import locating
from pelacli.console import file_progress
from pelacli.errors import PelaError, RequestError
from pelacli.manifest import digests, document, evaluations, integrity, lookup
from pelacli.manifest.document import Manifest
from pelacli.manifest.integrity import FREE, REMEDY, Damage
from pelacli.messages import one_line
from pelacli.models.hub import Files
from pelacli.system import own_files


@dataclass(frozen=True)
class Verified:
    """What is known of an artefact's files.

    Attributes:
        damages: what is missing or differs from what was written.
        notes: what a user should know of, and no model is read from: files that are new, a model
            card that was edited.
        recorded: whether the manifest holds digests; those of an older pela have none, and then the
            files' form alone is looked at.
        files: how many were compared.
        weights: SHA-256 of the weights; None where something is damaged.
        digest: of all that a model is opened from (`pelacli.manifest.integrity.digest`); None where
            something is damaged, or not recorded.
    """

    artefact: str
    damages: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    recorded: bool = True
    files: int = 0
    weights: str | None = None
    digest: str | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damages


def run(refs: Sequence[str]) -> list[Verified]:
    """Verify artefacts.

    Args:
        refs: artefacts, or directories with artefacts below them, such as run directories; or
            the hub's ids of artefacts, which are fetched whole.

    Raises:
        RequestError: one of them is none of these.
        PelaError: the hub can't be reached.
    """
    results = []
    for ref in refs:
        with file_progress(f"verifying {ref}"):
            results += [verify(path, name) for name, path in _artefacts(ref).items()]
    return results


def refuse_damaged(results: Sequence[Verified]) -> None:
    """Raise `PelaError` if one of the artefacts is damaged, with the remedy."""
    damaged = [result for result in results if not result.whole]
    if damaged:
        first, more = damaged[0], len(damaged) - 1
        others = f" (and {more} more artefacts)" if more else ""
        raise PelaError(
            f"{first.artefact}: {first.damages[0].file}: {first.damages[0].what}{others}; {REMEDY}"
        )


def _artefacts(ref: str) -> dict[str, Path]:
    """What to call each artefact → where it lies."""
    path = Path(ref)
    below = [path] if document.is_artefact(path) else lookup.artefacts(path)
    if below:
        return {str(artefact): artefact for artefact in below}
    on_the_hub = locating.locate(ref, Files.ALL)
    if on_the_hub is None:
        raise RequestError(f"{ref}: no artefact is here; name one, or a directory of artefacts")
    return {ref: on_the_hub}


def verify(path: Path, name: str | None = None) -> Verified:
    """Verify one artefact.

    Args:
        name: what to call it; by default its path.

    Raises:
        RequestError: there is none.
    """
    if not document.is_artefact(path):
        raise RequestError(f"{path}: not an artefact: there is no {document.FILE}")
    try:
        manifest = document.read(path)
    except RequestError as error:
        what = str(error).removeprefix(f"{path / document.FILE}: ")
        return Verified(name or str(path), [Damage(document.FILE, what)], recorded=False)
    damages = list(_in_manifest(path))
    if manifest.files is None:
        damages += _in_form(path)
        notes = ["was written by an older pela, without digests: damage inside of a file is unseen"]
    else:
        damages += integrity.damages(path, manifest.files)
        notes = [f"{d.file}: {d.what}" for d in damages if _is_free(d)]
        damages = [damage for damage in damages if not _is_free(damage)]
        additions = list(_additions(path, manifest))
        damages += [Damage(name, _ADDED) for name in additions if _is_read(name)]
        notes += [f"{name}: is not of this artefact" for name in additions if not _is_read(name)]
    return Verified(
        name or str(path),
        damages,
        notes,
        manifest.files is not None,
        len(manifest.files or {}),
        None if damages else _weights_digest(path, manifest),
        None if damages else integrity.digest(manifest),
    )


def _weights_digest(path: Path, manifest: Manifest) -> str:
    """That of the weights, which are not read once more where they have been compared."""
    if manifest.files is None:
        return digests.weights_digest(path)
    records = (manifest.files[file.name] for file in digests.weight_files(path))
    return digests.of_several(record.sha256 for record in records)


_ADDED = "is not of this artefact, and would be read with its weights; move it away"


def _is_read(name: str) -> bool:
    """Whether a file would be taken for a part of the weights."""
    return name.startswith("model") and name.endswith((".safetensors", ".safetensors.index.json"))


def _is_free(damage: Damage) -> bool:
    return damage.file in FREE


def _in_manifest(path: Path) -> Iterator[Damage]:
    if document.is_as_written(path) is False:
        yield Damage(document.FILE, "was changed after it was written")


def _in_form(path: Path) -> Iterator[Damage]:
    """Weights without a record: each file has the length that its header says."""
    try:
        files = digests.weight_files(path)
    except RequestError as error:
        yield Damage("model.safetensors", str(error).removeprefix(f"{path}/"))
        return
    if not files:
        yield Damage("model.safetensors", "is missing")
    for file in files:
        try:
            with safe_open(file, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            reason = one_line(error, 160)
            yield Damage(file.name, f"not a whole safetensors file ({reason})")


def _additions(path: Path, manifest: Manifest) -> Iterator[str]:
    """Files that the manifest says nothing of, and links that lead nowhere."""
    known = {document.FILE, evaluations.FILE, *(manifest.files or {})}
    for name in sorted(own_files.names_below(path), key=PurePath):  # a folder's files together
        file = path / name
        if name not in known and (file.is_file() or (file.is_symlink() and not file.exists())):
            yield name
