"""A device that is none: tensors on it are the CPU's in a wrapper, and may not meet tensors of the
CPU in one operation, as those of an accelerator may not. It shows what would fail on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"


class OnDevice(Tensor):
    """A tensor of the device."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> OnDevice:
        tensor = Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(),
            dtype=raw.dtype, device=torch.device(NAME, 0), requires_grad=raw.requires_grad,
        )  # fmt: skip
        tensor.raw = raw
        return tensor

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.raw})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


_COPIES = ("aten::copy_", "aten::_to_copy", "aten::_copy_from")
_INDEXED = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation on the raw tensors, its results on the device unless it moves them away."""
    name = func._schema.name
    flat = torch.utils._pytree.tree_leaves((args, kwargs))
    tensors = [t for t in flat if isinstance(t, Tensor)]
    if name not in _COPIES:
        strangers = [t for t in tensors if not isinstance(t, OnDevice) and t.ndim]
        if name in _INDEXED:  # an accelerator takes indices of the CPU
            strangers = [t for t in strangers if t.dtype not in (torch.int64, torch.bool)]
        if strangers and any(isinstance(t, OnDevice) for t in tensors):
            raise RuntimeError(
                f"Expected all tensors to be on the same device ({name}: a tensor of shape "
                f"{tuple(strangers[0].shape)} is on the CPU)"
            )
    device = kwargs.get("device")
    away = device is not None and torch.device(device).type == "cpu"
    kwargs = {
        k: torch.device("cpu") if k == "device" and v is not None else v for k, v in kwargs.items()
    }
    raw_args, raw_kwargs = tree_map(_raw, (args, kwargs))
    if name == "aten::copy_" and not isinstance(args[0], OnDevice):
        args[0].copy_(args[1].raw)
        return args[0]
    result = func(*raw_args, **raw_kwargs)
    if away:
        return result
    wrapped = {id(t.raw): t for t in tensors if isinstance(t, OnDevice)}  # in place, and out=

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return wrapped[id(value)] if id(value) in wrapped else OnDevice(value)

    return tree_map(wrap, result)


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, OnDevice) else value


def register() -> torch.device:
    """Make the device known, once in a process."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        _setup_privateuseone_for_python_backend(NAME)
        library = torch.library.Library("_", "IMPL", "PrivateUse1")
        library.fallback(lambda op, *args, **kwargs: run(op, args, kwargs), with_keyset=False)
        _KEPT.append(library)
    return torch.device(NAME, 0)


_KEPT: list[Any] = []
