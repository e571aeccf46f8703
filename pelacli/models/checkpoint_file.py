"""A training script's checkpoint: tensors in a safetensors or ``.pth`` file, the latter by torch's
weights-only loader."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor

from pelacli.errors import RequestError
from pelacli.messages import one_line
from pelacli.models.weight_files import stored_tensors


def read(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors or ``.pth`` file, by their names in it.

    Raises:
        RequestError: it is damaged, or holds what only unpickling could load.
    """
    if file.suffix == ".safetensors":
        return {name: tensor for _, name, tensor in stored_tensors([file])}
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise RequestError(
            f"{file}: holds more than tensors, and pela never unpickles ({_culprit(str(error))}); "
            "where you trust it, load it with torch.load(…, weights_only=False) and save its "
            '["model"] with safetensors.torch.save_file'
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise RequestError(f"{file}: not a whole checkpoint ({one_line(error)})") from None
    inner = content if isinstance(content, dict) else None
    for level in ("model", "state_dict"):  # of the scripts of DeiT, Swin and ALBEF, of Lightning
        inner = inner.get(level, inner) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not all(isinstance(t, Tensor) for t in inner.values()):
        raise RequestError(f'{file}: no dictionary of tensors, nor one under "model"')
    return {str(name): tensor for name, tensor in inner.items()}


def _culprit(message: str) -> str:
    """What the weights-only loader stumbled over, out of its long message."""
    match = re.search(r"GLOBAL (\S+) was not", message)
    return match[1] if match else "the file is no plain checkpoint"
