"""Work on a model where factorising is done, and put it back where it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.system import processes


@contextmanager
def on_cpu(module: nn.Module) -> Iterator[None]:
    """While active, a module is on the CPU; afterwards it is back, its new layers included.

    Raises:
        RequestError: it has no weights yet ("meta"), or lies on several devices.
    """
    places = {t.device for tensors in (module.parameters(), module.buffers()) for t in tensors}
    home = next((place for place in places if place.type != "cpu"), None)
    if home is None:
        yield
        return
    name = type(module).__name__
    if home.type == "meta":
        raise RequestError(f"{name}: is on the device 'meta', without weights; load them first")
    if len(places) > 1:
        found = ", ".join(sorted(map(str, places)))
        raise RequestError(f"{name}: lies on several devices ({found}); move it to one")
    module.cpu()
    try:
        yield
    finally:
        module.to(home)


def select(device: str) -> torch.device:
    """Where to run: "cpu", or else the accelerator; with "auto" only if there is one.

    Raises:
        RequestError: there is none of that kind.
    """
    joined: torch.device = processes.join(device).device
    if device == "auto":
        return joined
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kinds = ["cpu"] if found is None else ["cpu", found.type]
    if device not in kinds:
        raise RequestError(f"device {device!r}: this machine has {' and '.join(kinds)}")
    return joined if joined.type == device else torch.device(device)


def move_module(
    module: nn.Module, device: torch.device | str, channels_last: bool = False
) -> nn.Module:
    """Move a module to a device, its convolutions in the wanted order of memory."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    return module.to(torch.device(device)).to(memory_format=order)


def move_batch(
    value: Any,
    device: torch.device | str,
    channels_last: bool = False,
) -> Any:
    """Move a batch (tensors in dicts) to a device, images in the wanted order of memory.

    What is moved to the CPU has arrived there; other devices see to it that they wait.
    """
    if isinstance(value, Tensor):
        last = channels_last and value.ndim == 4
        order = torch.channels_last if last else torch.preserve_format
        to_accelerator = torch.device(device).type != "cpu"
        return value.to(device, non_blocking=to_accelerator, memory_format=order)
    if isinstance(value, Mapping):
        return {key: move_batch(item, device, channels_last) for key, item in value.items()}
    return value
