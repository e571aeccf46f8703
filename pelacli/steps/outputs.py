"""The output of a step while it is written: nobody else writes there, and what dead runs have left
beside it goes. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pelacli.errors import RequestError
from pelacli.manifest import document
from pelacli.recipe import layout
from pelacli.system import leftovers, locks, processes
from pelacli.system.locks import LockedError

FINGERPRINT = "fingerprint"  # in the working folder of a training


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Hold an output. Of several processes that a launcher started the first one does.

    Raises:
        LockedError: another process writes there.
    """
    if not processes.is_first():
        yield
        return
    with locks.holding(output):
        output = output.resolve()
        for path in _written(output):
            leftovers.clear(path)
        if _is_finished(output):
            leftovers.discard(layout.workplace(output))
        yield


def tidy(output: Path) -> None:
    """Remove what dead runs have left beside an output that is done, if nobody writes there."""
    if processes.is_first() and (
        _is_finished(output) or any(map(leftovers.are_beside, _written(output)))
    ):
        with suppress(LockedError, OSError), writing(output):
            pass


def _written(output: Path) -> list[Path]:
    """The paths that a step's drafts lie beside."""
    return [output, layout.workplace(output), layout.moments_folder(output)]


def _is_finished(output: Path) -> bool:
    """Whether the artefact of the run in the output's working folder is there: the run was killed
    before it could remove the folder. Checkpoints that are later than the artefact are of another
    run of the same recipe, which is to go on."""
    work = layout.workplace(output)
    file = work / FINGERPRINT
    if not file.is_file() or not document.is_artefact(output):
        return False
    written = (output / document.FILE).stat().st_mtime_ns
    if any(path.stat().st_mtime_ns > written for path in work.glob("checkpoints/*/*")):
        return False
    try:
        history = document.read(output).history
    except RequestError:  # damaged
        return False
    return bool(history) and history[-1].fingerprint == file.read_text(encoding="utf-8")
