"""What of a machine decides the bits of a result: a run on another one is as good, and may round
otherwise. torch is imported by the first call."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from pelacli.system import devices, processes

if TYPE_CHECKING:
    import torch


def description(device: torch.device) -> dict[str, str | int]:
    """What to have again for the same bits: the device, the CPU's instructions, threads, processes.

    Args:
        device: where the model computes.
    """
    import torch

    return {
        "device": devices.model_of(device),
        "instructions": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "processes": processes.launched(),
    }
