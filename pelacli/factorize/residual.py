"""Where a layer's output goes: into which sum, past which reshapings and scales.

A layer that writes into a residual stream can pay back what the compressed stream has lost so
far: if the dense model adds P y to the stream h and the compressed one to ĥ, the layer's output
should be y + P⁻¹(h − ĥ). P is a reshaping (Swin's windows), a scale per channel (LayerScale), or
nothing at all. No architecture is known by name here: a running model is watched, and P is what
happened to y on its way to the sum.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Path = Callable[[Tensor], Tensor]

# What moves entries about or leaves them as they are. The first argument is the tensor.
_MOVES = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim",
    "squeeze", "unsqueeze", "contiguous", "roll", "__getitem__", "to", "float", "clone", "detach",
}  # fmt: skip
_SCALES = {"mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply"}
_SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__"}


@dataclass
class Sum:
    """A layer's output y was added to a stream.

    Attributes:
        stream: h, what it was added to, as it was before.
        call: number of the torch call that gave h; the same in every run of the same shapes.
        path: P, which makes of y what is added to h.
    """

    stream: Tensor
    call: int
    path: Path


class Watch(TorchFunctionMode):
    """While active, numbers the torch calls and follows one layer's output to its sum.

    Attributes:
        sum: the sum that the output went into; None as long as it has gone into none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sum: Sum | None = None
        self._results: list[weakref.ref[Tensor]] = []
        self._call_of: dict[int, int] = {}  # id of a tensor → number of the last call that gave it
        # Tensors are not kept alive for this.
        self._followed: dict[int, tuple[weakref.ref[Tensor], Path]] = {}

    def follow(self, output: Tensor) -> None:
        """Follow this layer output from now on, and no other."""
        self.sum, self._followed = None, {}
        self._follow(output, _same)

    def _follow(self, tensor: Tensor, path: Path) -> None:
        self._followed[id(tensor)] = (weakref.ref(tensor), path)

    def _path_to(self, value: Any) -> Path | None:
        """What made this of the output that is followed; None of anything else."""
        followed, path = self._followed.get(id(value), (None, None))
        return path if followed is not None and followed() is value else None

    def output_of(self, call: int) -> Tensor | None:
        """The tensor that a call gave, while it is in use."""
        return self._results[call]() if call < len(self._results) else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self._followed and self.sum is None and name in _SUMS and len(args) == 2:
            self.sum = self._sum(*args)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            if self._followed and self.sum is None and args:
                self._step(func, name, args, kwargs, result)
            self._call_of[id(result)] = len(self._results)
            self._results.append(weakref.ref(result))
        return result

    def _sum(self, a: Any, b: Any) -> Sum | None:
        for ours, stream in ((a, b), (b, a)):
            path = self._path_to(ours)
            if path is None or not isinstance(stream, Tensor):
                continue
            call = self._call_that_gave(stream)
            apart = self._path_to(stream) is None and stream.shape == ours.shape
            if call is not None and apart:
                # A copy, since a sum in place would change the stream.
                return Sum(stream.detach().clone(), call, path)
        return None

    def _call_that_gave(self, tensor: Tensor) -> int | None:
        call = self._call_of.get(id(tensor))
        return call if call is not None and self._results[call]() is tensor else None

    def _step(self, func: Any, name: str, args: Any, kwargs: Any, result: Tensor) -> None:
        """Follow the output through one call, if that is linear in it and nothing else."""
        if name in _SCALES and len(args) == 2:
            for ours, scale in (args, args[::-1]):
                path = self._path_to(ours)
                if path is not None and _constant(scale):
                    self._follow(result, _scaled(path, scale))
                    return
            return
        path = self._path_to(args[0])
        if path is None:
            return
        if name in _MOVES and not any(isinstance(a, Tensor) for a in args[1:]):
            self._follow(result, _moved(path, func, args[1:], kwargs))
        elif func in (F.dropout, torch.dropout) and result.shape == args[0].shape:
            self._follow(result, path)  # nothing is dropped in eval mode


def owed(dense: Sum, stream: Tensor, output: Tensor) -> Tensor:
    """P⁻¹(h − ĥ): what must be added to the layer's output to make up for the stream's loss.

    Args:
        dense: the sum of the dense model, with its stream h.
        stream: ĥ, the compressed model's, of h's shape.
        output: y, for its shape.

    Returns:
        [..., out]; zero where y does not reach the sum (padding of windows).
    """
    with torch.enable_grad():
        probe = torch.zeros_like(output, requires_grad=True)
        reached = dense.path(probe)
        (back,) = torch.autograd.grad(reached, probe, dense.stream - stream, retain_graph=True)
        # P is a permutation times a scale: Pᵀ P is the scale's square, entry by entry.
        (square,) = torch.autograd.grad(reached, probe, dense.path(torch.ones_like(output)))
    tiny = 1e-12 * square.abs().amax().clamp_min(1e-30)
    return torch.where(square.abs() > tiny, back / square.where(square.abs() > tiny, 1.0), 0.0)


def _same(y: Tensor) -> Tensor:
    return y


def _scaled(path: Path, scale: Any) -> Path:
    return lambda y: path(y) * scale


def _moved(path: Path, func: Any, args: Any, kwargs: Any) -> Path:
    return lambda y: func(path(y), *args, **kwargs)


def _constant(value: Any) -> bool:
    """A number, a parameter, or a view of one."""
    return isinstance(value, nn.Parameter | int | float) or (
        isinstance(value, Tensor) and isinstance(value._base, nn.Parameter)
    )
