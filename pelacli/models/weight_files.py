"""Safetensors files as a whole: shapes, digests, values that are not finite."""

from __future__ import annotations

from pathlib import Path

import torch

from pelacli.errors import RequestError
from pelacli.models.opened import OpenModel


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RequestError(f"{file}: not a whole safetensors file ({error})") from None


def refuse_non_finite(opened: OpenModel) -> None:
    for name, parameter in opened.module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise RequestError(
                f"{opened.ref}: {name} holds values that are not finite; the checkpoint is damaged"
            )
