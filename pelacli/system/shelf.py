"""Tensors and small objects in files of a folder, by name. torch is imported by the first call."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from pelacli.errors import PelaError
from pelacli.messages import one_line
from pelacli.system import devices, leftovers


class Shelf:
    """Named values outside of the process's memory, each in a file of its own.

    A file is written under another name and then renamed, so that whenever a process is killed
    there is the whole of a value or none.

    Args:
        folder: is made where there is none, and stays. None: a temporary one, which goes with the
            shelf.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is None:
            usual = Path(tempfile.gettempdir()) / "pela-shelf"
            leftovers.clear(usual)
            folder = leftovers.draft(usual)
            folder.mkdir(0o700)
            weakref.finalize(self, leftovers.remove, folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def put(self, name: str, value: Any) -> None:
        """Keep a value of tensors, numbers, text, lists and dicts under a name. It comes back on
        the CPU.

        Raises:
            PelaError: the disk is full, or refuses.
        """
        import torch

        draft = self.folder / "draft.tmp"
        try:
            torch.save(devices.move_batch(value, "cpu"), draft)
            os.replace(draft, self._file(name))
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into the latter
            draft.unlink(missing_ok=True)
            full = getattr(error, "errno", None) == errno.ENOSPC or _is_full(self.folder)
            what = "the disk is full" if full else one_line(error)
            raise PelaError(
                f"{self.folder}: {what}; what does not fit in memory goes there: make room, or "
                "take fewer samples"
            ) from None

    def get(self, name: str) -> Any:
        """The value of a name that is there."""
        import torch

        return torch.load(self._file(name), weights_only=True)

    def drop(self, name: str) -> None:
        """Forget a name, if it is there."""
        self._file(name).unlink(missing_ok=True)

    def __contains__(self, name: str) -> bool:
        return self._file(name).is_file()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.pt"


def _is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < 1 << 20
