"""Where decompose computes: the CPU or an accelerator, whole, block by block or layer by layer."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from pelacli import console
from pelacli.errors import RequestError
from pelacli.models.blocks import blocks
from pelacli.models.opened import OpenModel
from pelacli.recipe.decompose import Decompose
from pelacli.recipe.step import Step
from pelacli.system import devices, memory

# How many times the largest block's weights an accelerator has to hold for one to be at work there:
# its activations, gradients and sums are about as large again for a batch of a thousand tokens.
_BLOCK = 6
_SHARE_OF_MEMORY = 0.5  # of what is free, that weights may take


def lazy_above(step: Step[Decompose]) -> float:
    """Bytes of weights from which the model is read layer by layer: half of what memory is free.
    Whatever runs the model on samples, or on an accelerator, needs all of it."""
    runs = step.calibration is not None or step.settings.max_drop is not None
    elsewhere = step.device not in ("auto", "cpu")
    return math.inf if runs or elsewhere else memory.available() * _SHARE_OF_MEMORY


@dataclass(frozen=True)
class Place:
    """Where the step computes.

    Attributes:
        model: where the whole model is.
        blocks: where its blocks go one after the other; None: they stay.
    """

    model: torch.device
    blocks: torch.device | None = None


def place_for(opened: OpenModel, step: Step[Decompose]) -> Place:
    """Where the step computes. An accelerator has to hold the model, and as much again for its
    largest layers, moments and activations; else a calibrated model's blocks, one after the other.

    Raises:
        RequestError: the device that is asked for can hold neither.
    """
    if opened.weights is not None:  # layers that are read one by one stay on the CPU
        return Place(torch.device("cpu"))
    device = devices.select_precise(step.device)
    free = devices.free_memory(device)
    needed = 2 * _bytes(opened.module)
    if free is None or free >= needed:
        return Place(device)
    cpu = torch.device("cpu")
    sizes = (
        f"{memory.text(free)} are free on {device}, and about {memory.text(needed)} are needed for "
        "the whole model"
    )
    sequence = [opened.module.get_submodule(name) for name in blocks(opened.module)]
    one_by_one = step.calibration is not None and step.settings.blockwise is not False
    if one_by_one and sequence and free >= _BLOCK * max(map(_bytes, sequence)):
        console.warn(f"{sizes}: its blocks go there one after the other")
        return Place(cpu, device)
    if step.device != "auto":
        raise RequestError(f"--device {step.device}: {sizes}; take cpu")
    console.warn(f"{sizes}: computing on the CPU")
    return Place(cpu)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def placed(opened: OpenModel, device: torch.device) -> AbstractContextManager[None]:
    """`devices.placed`; a lazily opened model has nothing to place."""
    if opened.weights is not None:
        return nullcontext()
    return devices.placed(opened.module, device)
