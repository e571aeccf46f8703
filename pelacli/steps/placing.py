"""Where decompose computes: the CPU or an accelerator, whole, block by block or layer by layer."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from pelacli import console
from pelacli.errors import RequestError
from pelacli.models import filling
from pelacli.models.blocks import blocks
from pelacli.models.opened import OpenModel
from pelacli.recipe.decompose import Decompose
from pelacli.recipe.step import Step
from pelacli.system import devices, memory, processes

# How many times the largest block's weights an accelerator has to hold for one to be at work there:
# its activations, gradients and sums are about as large again for a batch of a thousand tokens.
_BLOCK = 6
_SHARE_OF_MEMORY = 0.5  # of what is free, that weights may take
_SHARE_CALIBRATED = 0.7  # the same where they are computed in float32 and not copied


def lazy_above(step: Step[Decompose]) -> float:
    """Bytes of weights, in float32, from which the model is read layer by layer, or for calibration
    block by block. Whatever runs the whole model on samples, or on an accelerator, needs all of
    it."""
    elsewhere = step.device not in ("auto", "cpu")
    timed = step.settings.counted[0] == "latency"
    whole = timed or step.settings.max_drop is not None or (elsewhere and step.calibration is None)
    if whole or (step.calibration is not None and step.settings.blockwise is False):
        return math.inf
    shared = processes.rank_and_size()[1] > 1  # samples are, and not blocks
    if step.calibration is not None and shared:
        return math.inf
    share = _SHARE_OF_MEMORY if step.calibration is None else _SHARE_CALIBRATED
    return memory.available() * share


@dataclass(frozen=True)
class Devices:
    """Where the step computes.

    Attributes:
        model: where the whole model is.
        blocks: where its blocks go one after the other; None: they stay.
    """

    model: torch.device
    blocks: torch.device | None = None


def choose(opened: OpenModel, step: Step[Decompose]) -> Devices:
    """Where the step computes. An accelerator has to hold the model, and as much again for its
    largest layers, moments and activations; else a calibrated model's blocks, one after the other.

    Raises:
        RequestError: the device that is asked for can hold neither.
    """
    lazy = opened.weights is not None
    if lazy and step.calibration is None:  # layers that are read one by one stay on the CPU
        return Devices(torch.device("cpu"))
    device = devices.select_precise(step.device)
    free = devices.free_memory(device)
    needed = 2 * _bytes(opened.module)
    if free is None or (free >= needed and not lazy):
        return Devices(device)
    cpu = torch.device("cpu")
    sizes = (
        f"{memory.text(free)} are free on {device}, and about {memory.text(needed)} are needed for "
        "the whole model"
    )
    sequence = [opened.module.get_submodule(name) for name in blocks(opened.module)]
    one_by_one = step.calibration is not None and step.settings.blockwise is not False
    if one_by_one and sequence and free >= _BLOCK * max(map(_bytes, sequence)):
        console.warn(f"{sizes}: its blocks go there one after the other")
        return Devices(cpu, device)
    if step.device != "auto":
        raise RequestError(f"--device {step.device}: {sizes}; take cpu")
    console.warn(f"{sizes}: computing on the CPU")
    return Devices(cpu)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def ready(
    opened: OpenModel, device: torch.device, *, calibrated: bool
) -> AbstractContextManager[None]:
    """The model on the device, for the time of the block. Of a lazily opened one what is not in its
    blocks is in memory, if it is calibrated, and nothing otherwise."""
    if opened.weights is None:
        return devices.placed(opened.module, device)
    if not calibrated:
        return nullcontext()
    return filling.beside(opened.module, opened.weights, blocks(opened.module))
