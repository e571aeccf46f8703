"""Find the artefact that a user names: a path, a run directory, or an id of the hub. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pelacli.errors import RequestError
from pelacli.manifest import document, lookup
from pelacli.models import hub
from pelacli.models.hub import Files


@dataclass(frozen=True)
class Located:
    """An artefact with all its files on this machine.

    Attributes:
        path: its directory.
        name: what to call it: its path, or its id where it is of the hub, whose cache is no name
            for people.
    """

    path: Path
    name: str


def locate(ref: str, files: Files = Files.WEIGHTS) -> Path | None:
    """The directory of an artefact that a user names: a path, a run directory (its last step), or a
    hub id, whose files are fetched. None where the name is of no artefact.

    Args:
        files: what is fetched.

    Raises:
        RequestError, PelaError: the hub does not have it, or can't be reached.
    """
    return lookup.latest(Path(ref)) or hub.artefact(ref, files)


def names_artefact(ref: str) -> bool:
    """Whether a user names an artefact, here or on the hub; its weights are not fetched.

    Raises:
        RequestError, PelaError: as `locate`.
    """
    return locate(ref, Files.SMALL) is not None


def whole(ref: str) -> Located:
    """The artefact that a user names, with every file of it.

    Raises:
        RequestError: there is none.
        PelaError: the hub can't be reached.
    """
    path = locate(ref, Files.ALL)
    if path is None:
        raise RequestError(f"{ref}: not an artefact: there is no {document.FILE}")
    return Located(path, str(path) if Path(ref).exists() else ref)
