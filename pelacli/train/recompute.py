"""Hold less for the backward pass: outputs of GELU and norms are computed again, not kept.

A layer after an activation keeps its input for its weight's gradient, and the activation keeps its
own input for its own gradient. In a Transformer's MLP these are the two widest tensors of a block.
The first follows from the second by an elementwise function, which costs next to nothing. The same
holds for norms.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pelacli.errors import RequestError

# These keep their input for the backward pass. ReLU, tanh and sigmoid keep their output, so that
# computing it again would save nothing.
_KINDS = (nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.LayerNorm)


@dataclass
class _Output:
    """The output of such a module, and what it is computed from."""

    tensor: weakref.ref[Tensor]
    version: int
    module: nn.Module
    input: Tensor


@dataclass
class _Recomputed:
    """What is kept in place of a tensor: how to compute it again."""

    module: nn.Module
    input: Tensor
    shape: torch.Size


@contextmanager
def activations(module: nn.Module, *, on: bool = True) -> Iterator[None]:
    """While active, the module's forward pass keeps no outputs of norms, GELU and its kin.

    Gradients are bit for bit the same. Not for compiled or checkpointed modules, which decide for
    themselves what they keep.

    Args:
        on: without it nothing happens.
    """
    if not on:
        yield
        return
    outputs: dict[int, _Output] = {}

    def note(child: nn.Module, args: Any, output: Any) -> None:
        if len(args) != 1 or not _plain(args[0]) or not _plain(output):
            return
        if output.requires_grad and output.dtype == args[0].dtype:  # autocast may change it
            # The version tells whether the output has been changed in place since.
            noted = _Output(weakref.ref(output), output._version, child, args[0].detach())
            outputs[output.data_ptr()] = noted

    def pack(tensor: Tensor) -> Any:
        noted = outputs.get(tensor.data_ptr()) if _plain(tensor) else None
        output = noted.tensor() if noted is not None else None
        # A function that keeps its own output (tanh, softmax) would keep itself by it, and for ever
        # where the backward pass does not come by: so the output is kept without its history.
        if noted is None or output is None:  # freed, and its memory may be another tensor's by now
            return tensor.detach()
        same = (tensor.dtype, tensor.numel()) == (output.dtype, output.numel())
        if not same or output._version != noted.version:
            return tensor.detach()
        return _Recomputed(noted.module, noted.input, tensor.shape)

    def unpack(kept: Any) -> Tensor:
        if not isinstance(kept, _Recomputed):
            assert isinstance(kept, Tensor)
            return kept
        with torch.no_grad(), torch.autocast(kept.input.device.type, enabled=False):
            # The class's forward runs no hooks, which would take this for another pass.
            output: Tensor = type(kept.module).forward(kept.module, kept.input)
        return output.view(kept.shape)

    watched = [
        m for m in module.modules() if isinstance(m, _KINDS) and not getattr(m, "inplace", False)
    ]
    handles = [m.register_forward_hook(note) for m in watched]
    try:
        with saved_tensors_hooks(pack, unpack):
            yield
    finally:
        for handle in handles:
            handle.remove()
        outputs.clear()  # the graph keeps ``pack``, and with it all of this


def _plain(value: Any) -> bool:
    """Whether it is a plain tensor, contiguous in memory."""
    return (
        type(value) is Tensor
        and value.layout is torch.strided
        and value.is_contiguous()
        and value.data_ptr() != 0
    )


@contextmanager
def checkpointing(module: nn.Module, *, on: bool) -> Iterator[None]:
    """While active, the backward pass computes activations again, by timm's or transformers' own
    switch.

    Args:
        on: without it nothing happens.

    Raises:
        RequestError: the model has no such switch.
    """
    if not on:
        yield
        return
    _set_checkpointing(module, True)
    try:
        yield
    finally:
        _set_checkpointing(module, False)


def _set_checkpointing(module: nn.Module, on: bool) -> None:
    network: Any = module
    if hasattr(network, "set_grad_checkpointing"):
        network.set_grad_checkpointing(on)
    elif getattr(network, "supports_gradient_checkpointing", False):
        network.gradient_checkpointing_enable() if on else network.gradient_checkpointing_disable()
    else:
        raise RequestError("checkpointing: this model cannot recompute activations; turn it off")
