"""From the tokens of a sentence to its embedding, as sentence-transformers' files say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pelacli.errors import RequestError
from pelacli.models.carried import module_folders
from pelacli.models.sentence_modules import Step, dense, layer_norm, normalise
from pelacli.system import json_files

_RESTORE = "restore the file"
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# Up to version 5 each mode had a switch of its own in the file.
_SWITCHES = {"pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max",
             "pooling_mode_mean_tokens": "mean",
             "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
             "pooling_mode_weightedmean_tokens": "weightedmean",
             "pooling_mode_lasttoken": "lasttoken"}  # fmt: skip


@dataclass(frozen=True)
class Pooling:
    """How hidden states become one vector.

    Attributes:
        modes: their vectors are put one after another.
        normalise: the result gets length 1.
        steps: what is done to the vector before that, one after another: sentence-transformers'
            modules with weights.
    """

    modes: tuple[str, ...] = ("mean",)
    normalise: bool = False
    steps: tuple[Step, ...] = ()

    def __call__(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[B, N, C] and a mask [B, N] of the tokens that are no padding → [B, C · modes],
        or what the steps make of it."""
        pooled = torch.cat([_pool(mode, hidden, mask) for mode in self.modes], dim=-1)
        for step in self.steps:
            pooled = step(pooled)
        return normalise(pooled) if self.normalise else pooled


def _pool(mode: str, hidden: Tensor, mask: Tensor) -> Tensor:
    if mode == "max":
        return hidden.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
    number = torch.arange(1, mask.shape[1] + 1, device=mask.device) * mask
    if mode in ("cls", "lasttoken"):
        at = mask.int().argmax(1) if mode == "cls" else number.argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), at]
    weight = (number - mask.int().argmax(1)[:, None]) * mask if mode == "weightedmean" else mask
    weight = weight[..., None].to(hidden.dtype)
    total = weight.sum(1).clamp_min(1e-9)
    return (hidden * weight).sum(1) / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total)


def read(directory: Path) -> Pooling | None:
    """The pooling that modules.json and its neighbours describe; None where there are none.

    Raises:
        RequestError: a file is damaged, or asks for a pooling or a module that pela doesn't apply:
            the embeddings would be others than the model's.
    """
    file = directory / "modules.json"
    if not file.is_file():
        return None
    modules = json_files.read(file, _RESTORE)
    if not isinstance(modules, list) or not all(isinstance(row, dict) for row in modules):
        raise RequestError(f"{file}: not a list of modules; restore the file")
    modes: tuple[str, ...] = ("mean",)
    steps: list[Step] = []
    for module in modules:
        kind, folder = str(module.get("type", "")), str(module.get("path", ""))
        name = kind.rpartition(".")[2]
        if folder not in ("", *module_folders(modules)):
            raise RequestError(f"{file}: path {folder!r} leads out of the directory")
        if not kind.startswith("sentence_transformers."):
            raise _not_applied(file, kind)
        if name == "Pooling" and not steps:
            modes = _modes(directory / folder / "config.json")
        elif name == "Normalize":
            steps.append(normalise)
        elif name == "Dense":
            steps.append(dense(directory, folder))
        elif name == "LayerNorm":
            steps.append(layer_norm(directory, folder))
        elif name not in ("Transformer", "Dropout"):
            raise _not_applied(file, name)
    last = bool(steps) and steps[-1] is normalise
    return Pooling(modes, last, tuple(steps[:-1] if last else steps))


def _not_applied(file: Path, name: str) -> RequestError:
    return RequestError(
        f"{file}: pela does not apply its module {name!r}, so embeddings would not be the model's; "
        "to compress the encoder alone, give a copy of the directory without modules.json"
    )


def _modes(file: Path) -> tuple[str, ...]:
    config = json_files.read_as(dict, file, _RESTORE)
    asked = config.get("pooling_mode")
    modes = asked if isinstance(asked, list) else [asked] if asked else []
    modes = modes or [mode for switch, mode in _SWITCHES.items() if config.get(switch)] or ["mean"]
    for mode in modes:
        if mode not in MODES:
            raise RequestError(f"{file}: pooling {mode!r} is none of {', '.join(MODES)}")
    return tuple(modes)


def hold(module: Any, directory: Path) -> None:
    """Let a module know how its files pool."""
    pooling = read(directory)
    if pooling is not None:
        module.pela_pooling = pooling
