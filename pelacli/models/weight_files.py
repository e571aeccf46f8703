"""Weights on disk: the shapes in a safetensors file, its tensors one by one, and a module filled
from them so that nothing is missing and nothing is left over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

from torch import Tensor, nn

from pelacli.errors import RequestError

_Slot = tuple[nn.Module, str]  # a module, and the name of one of its own parameters or buffers


class StoredTensor(NamedTuple):
    """A tensor as a file holds it: the file, its name in there, and its values."""

    file: Path
    name: str
    tensor: Tensor


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a safetensors file, by name. No values are read.

    Raises:
        RequestError: the file is cut off or otherwise damaged.
    """
    from safetensors import safe_open

    with _damage_named(file), safe_open(file, framework="pt") as tensors:
        return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118


def stored_tensors(files: Sequence[Path]) -> Iterator[StoredTensor]:
    """The tensors of safetensors files, read one after another, so that only one of them is in
    memory beside what the caller keeps.

    Raises:
        RequestError: a file is cut off or otherwise damaged.
    """
    from safetensors import safe_open

    for file in files:
        with _damage_named(file), safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                # A copy: mapped memory is aligned as the file happens to be, and products of
                # differently aligned matrices differ in the last bit.
                yield StoredTensor(file, name, tensors.get_tensor(name).clone())


def load_strictly(
    module: nn.Module, tensors: Iterable[StoredTensor], where: Path, *, hint: str = ""
) -> None:
    """Fill a module, which may be on "meta". Every tensor must fit into the module, and every
    parameter and persistent buffer must be filled. A tensor that several modules share stays
    shared, and needs to be stored under one of its names only.

    torch's ``load_state_dict(assign=True)`` would want all tensors in memory at once and a shared
    one under each of its names, would make several tensors of a shared one, and would not name the
    file of a wrong one.

    Args:
        where: file or directory that an error names when a tensor is missing.
        hint: what an error says about a missing or unknown tensor beside its name.

    Raises:
        RequestError: a tensor is missing, unknown, of another shape or not finite.
    """
    slots = _slots(module)
    filled: set[int] = set()
    for file, name, tensor in tensors:
        if name not in slots:
            raise RequestError(f"{file}: {name}: the model has no such tensor{hint}")
        _fill(slots[name], tensor, f"{file}: {name}")
        filled.add(id(slots[name]))
    missing = [name for name, group in slots.items() if id(group) not in filled]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RequestError(f"{where}: its weights lack {missing[0]}{more}{hint}")


def _slots(module: nn.Module) -> dict[str, list[_Slot]]:
    """Under each name of the module's state the slots that hold this tensor. Names of the same
    shared tensor have the very same list."""
    slots: dict[str, list[_Slot]] = {}
    slots_of: dict[int, list[_Slot]] = {}
    persistent = module.state_dict(keep_vars=True).keys()
    for prefix, child in module.named_modules(remove_duplicate=False):
        for key, tensor in [*child._parameters.items(), *child._buffers.items()]:
            name = f"{prefix}.{key}" if prefix else key
            if tensor is not None and name in persistent:
                slots[name] = slots_of.setdefault(id(tensor), [])
                slots[name].append((child, key))
    return slots


def _fill(slots: list[_Slot], tensor: Tensor, where: str) -> None:
    child, key = slots[0]
    old = cast(Tensor, child._parameters.get(key, child._buffers.get(key)))
    if old.shape != tensor.shape:
        raise RequestError(
            f"{where}: has shape {tuple(tensor.shape)}, the model wants {tuple(old.shape)}"
        )
    if isinstance(old, nn.Parameter):
        if not tensor.isfinite().all():
            raise RequestError(
                f"{where}: holds values that are not finite; the file is damaged, make it anew"
            )
        parameter = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        for owner, name in slots:
            owner._parameters[name] = parameter
    else:
        for owner, name in slots:
            owner._buffers[name] = tensor


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:
        raise RequestError(f"{file}: not a whole safetensors file ({error})") from None
