"""Matrices in a temporary file, to be read back in part. torch is imported by the first call."""

from __future__ import annotations

import tempfile
import threading
from io import BufferedRandom
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class SpillFile:
    """Named float32 matrices outside of the process's memory.

    The file has no name on disk, so nothing is left behind however the process ends. Where it can't
    be written (a full disk, no temporary directory) nothing is kept, and `last_rows` gives None.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, tuple[int, int, int]] = {}  # offset, rows, columns
        self._file: BufferedRandom | None = None
        self._end = 0
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        except OSError:
            return

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._end

    def put(self, name: str, matrix: Tensor) -> bool:
        """Keep a matrix [rows, columns] under a new name. Gives whether it is kept."""
        import torch

        data = matrix.detach().to("cpu", torch.float32).contiguous()
        if self._file is None or not data.numel():
            return False
        with self._lock:
            try:
                self._file.seek(self._end)
                self._file.write(data.numpy().data)
                self._file.flush()
            except OSError:
                return False
            self._entries[name] = (self._end, *data.shape)
            self._end += data.nbytes
        return True

    def last_rows(self, name: str, rows: int) -> Tensor | None:
        """The last rows of a matrix, [rows, columns]; None where fewer were kept."""
        import torch

        if self._file is None or name not in self._entries:
            return None
        start, height, width = self._entries[name]
        if rows > height:
            return None
        data = torch.empty(rows, width)
        with self._lock:
            self._file.seek(start + 4 * width * (height - rows))
            if rows and self._file.readinto(data.numpy().data) < data.nbytes:
                return None
        return data
