"""Devices: choose one, and move modules and batches to it. torch is imported by the first call."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelacli.errors import RequestError
from pelacli.system import memory, processes

if TYPE_CHECKING:
    import torch
    from torch import nn


def select(name: str) -> torch.device:
    """The device that a recipe names: "cpu", an accelerator's kind, or "auto" for an accelerator
    where there is one.

    Raises:
        RequestError: this machine has no device of that kind.
    """
    import torch

    joined: torch.device = processes.join(name).device
    if name == "auto":
        return joined
    accelerator = None
    if torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
    kinds = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    if name not in kinds:
        raise missing(name, kinds)
    return joined if joined.type == name else torch.device(name)


def select_precise(name: str) -> torch.device:
    """`select`, for what needs double precision, which Apple's devices don't have: "auto" is the
    CPU there.

    Raises:
        RequestError: this machine has no device of that kind, or it has no double precision.
    """
    import torch

    if name == "auto" and not torch.accelerator.is_available():
        return torch.device("cpu")
    device = select(name)
    if device.type != "mps":
        return device
    if name == "auto":
        return torch.device("cpu")
    raise RequestError("device 'mps': has no double precision, which decompose needs; take 'cpu'")


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on an accelerator; None of the CPU and where it can't be told."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def memory_left(device: torch.device) -> int | None:
    """Bytes that are free where a device computes, the CPU too; None where it can't be told."""
    return memory.available() if device.type == "cpu" else free_memory(device)


def model_of(device: torch.device) -> str:
    """What the device is called by its maker, as "NVIDIA H100 80GB HBM3": times are of one model of
    a device, and of no other."""
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return _processor() if device.type == "cpu" else f"{device.type} of {_processor()}"


def _processor() -> str:
    """The CPU's name, which Python's ``platform`` does not give on Linux."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n"):
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "cpu"


def missing(name: str, kinds: Sequence[str]) -> RequestError:
    """The error for a device that a recipe names, where there are only devices of these kinds."""
    return RequestError(f"device {name!r}: this machine has {' and '.join(kinds)}")


def home(module: nn.Module) -> torch.device:
    """Where a module lies; the CPU for one without tensors.

    Raises:
        RequestError: the module has no weights yet ("meta"), or lies on several devices.
    """
    import torch

    devices = {t.device for tensors in (module.parameters(), module.buffers()) for t in tensors}
    name = type(module).__name__
    if any(device.type == "meta" for device in devices):
        raise RequestError(f"{name}: is on the device 'meta', without weights; load them first")
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise RequestError(f"{name}: lies on several devices ({names}); move it to one")
    return devices.pop() if devices else torch.device("cpu")


@contextmanager
def placed(module: nn.Module, device: torch.device | str) -> Iterator[None]:
    """Keep a module on a device for the time of the block, then move it back with its new layers.

    Raises:
        RequestError: as `home`.
    """
    import torch

    before = home(module)
    if before == torch.device(device):
        yield
        return
    try:
        module.to(device)
        yield
    finally:
        module.to(before)


def on_cpu(module: nn.Module) -> AbstractContextManager[None]:
    """`placed` on the CPU."""
    return placed(module, "cpu")


def move_module(
    module: nn.Module, device: torch.device | str, channels_last: bool = False
) -> nn.Module:
    """Move a module to a device, its convolutions in the memory order that is asked for."""
    import torch

    order = torch.channels_last if channels_last else torch.contiguous_format
    return module.to(torch.device(device)).to(memory_format=order)


def move_batch(value: Any, device: torch.device | str, channels_last: bool = False) -> Any:
    """Move a batch (tensors in nested dicts and lists) to a device, images in the memory order that
    is asked for.

    accelerate's ``send_to_device`` knows no memory order, and would copy images twice. A move to
    the CPU has arrived when this returns; other devices wait for their data themselves.
    """
    import torch

    if isinstance(value, torch.Tensor):
        images_last = channels_last and value.ndim == 4
        order = torch.channels_last if images_last else torch.preserve_format
        to_accelerator = torch.device(device).type != "cpu"
        return value.to(device, non_blocking=to_accelerator, memory_format=order)
    if isinstance(value, Mapping):
        return {key: move_batch(item, device, channels_last) for key, item in value.items()}
    if isinstance(value, list):
        return [move_batch(item, device, channels_last) for item in value]
    return value


def cores() -> int:
    """Cores of this machine that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
