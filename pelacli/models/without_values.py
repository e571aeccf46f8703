"""Models of which the shapes alone are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# What initialisations are made of. On "meta" torch gives each its shape in Python, which takes
# longer than to draw the numbers. By name, as transformers puts its own in place of torch's.
_INITIALISATIONS = {
    "add_", "clamp_", "constant_", "div_", "erfinv_", "fill_", "kaiming_uniform_", "mul_",
    "normal_", "sub_", "trunc_normal_", "uniform_", "zero_",
}  # fmt: skip


@contextmanager
def without_values() -> Iterator[None]:
    """While active, new modules have no values: they lie on "meta", buffers too."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=True), _Uninitialised():
        yield


@contextmanager
def parameters_without_values() -> Iterator[None]:
    """While active, new modules have values in their buffers alone."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False), _Uninitialised():
        yield


@contextmanager
def on_meta() -> Iterator[None]:
    """While active, every new tensor lies on "meta", also what a module computes as it is built."""
    with torch.device("meta"), _Uninitialised():
        yield


class _Uninitialised(TorchFunctionMode):
    """While active, what lies on "meta" is not initialised."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _INITIALISATIONS:
            first = args[0] if args else kwargs.get("tensor")
            others = (o for o in (*args, *kwargs.values()) if o is not first)
            # Another tensor may have a shape that does not fit.
            if _is_empty(first) and not any(isinstance(o, Tensor) for o in others):
                return first
        return func(*args, **kwargs)


def _is_empty(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_meta
