"""Matrices put aside in a temporary file, to be read back in part."""

from __future__ import annotations

import tempfile
import threading
from io import BufferedRandom

import torch
from torch import Tensor


class Shelf:
    """Named float32 matrices outside the memory of the process.

    The file has no name, so nothing is left behind however the process ends. Where it can't be
    written (no room, no temporary directory) nothing is kept, and `last` gives None.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[str, tuple[int, int, int]] = {}  # offset, rows, columns
        self._file: BufferedRandom | None = None
        self._end = 0
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        except OSError:
            return

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._end

    def put(self, name: str, matrix: Tensor) -> None:
        """Keep a matrix [rows, columns] under a new name."""
        data = matrix.detach().to("cpu", torch.float32).contiguous()
        if self._file is None or not data.numel():
            return
        with self._lock:
            try:
                self._file.seek(self._end)
                self._file.write(data.numpy().data)
                self._file.flush()
            except OSError:
                return
            self._places[name] = (self._end, *data.shape)
            self._end += data.nbytes

    def last(self, name: str, rows: int) -> Tensor | None:
        """The last rows of a matrix, [rows, columns], or None if it has not so many."""
        if self._file is None or name not in self._places:
            return None
        start, height, width = self._places[name]
        if rows > height:
            return None
        data = torch.empty(rows, width)
        with self._lock:
            self._file.seek(start + 4 * width * (height - rows))
            if rows and self._file.readinto(data.numpy().data) < data.nbytes:
                return None
        return data
