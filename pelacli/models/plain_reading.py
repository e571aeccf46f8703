"""Read single tensors of safetensors files by plain file reads.

The library's own reader maps a whole file into memory that counts as the process's own
(``ulimit -d``), and so refuses a file that is larger than what it may take.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pelacli.errors import RequestError

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
LENGTH = 8  # bytes of the header's length, with which a file begins
_ALIGNMENT = 64  # bytes that torch aligns its own memory to


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file.

    Attributes:
        name: what the file calls it.
        start, end: where its values lie, bytes from the beginning of the file.
    """

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> Tensor:
        """Its values, in memory that is aligned as a mapped file's is: products of differently
        aligned matrices differ in the last bit.

        Raises:
            RequestError: the file has become shorter.
        """
        size = self.end - self.start
        room = torch.empty(size + _ALIGNMENT, dtype=torch.uint8)
        first = (self.start - room.data_ptr()) % _ALIGNMENT
        values = room[first : first + size]
        with self.file.open("rb") as file:
            file.seek(self.start)
            if file.readinto(values.numpy().data) != size:
                raise RequestError(f"{self.file}: {self.name}: the file is cut off; fetch it again")
        return values.view(self.dtype).view(self.shape)


def bytes_in_float32(file: Path) -> int:
    """What the tensors of a file take in float32. Of a file that says it in no known way: its
    size."""
    tensors = stored(file)
    if tensors is None:
        return file.stat().st_size
    return sum(4 * math.prod(tensor.shape) for tensor in tensors.values())


def stored(file: Path) -> dict[str, Stored] | None:
    """The tensors of a file that is known to be whole, by name; None where one is of a type that
    torch has no plain one for."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(LENGTH), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    if any(entry["dtype"] not in TYPES for entry in header.values()):
        return None
    begin = LENGTH + length
    return {
        name: Stored(
            file,
            name,
            TYPES[entry["dtype"]],
            tuple(entry["shape"]),
            *(begin + offset for offset in entry["data_offsets"]),
        )
        for name, entry in header.items()
    }
