"""Weights on disk: the shapes in a safetensors file, its tensors one by one, and a module filled
from them so that nothing is missing and nothing is left over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.lowrank.find import low_rank_layers
from pelacli.lowrank.pivot_linear import PivotLinear
from pelacli.manifest.digests import bytes_of
from pelacli.messages import one_line
from pelacli.models.plain_reading import TYPES
from pelacli.system import bytes_done

_PLAIN = {name: kind for name, kind in TYPES.items() if kind.is_floating_point}
# For torch, safetensors maps the whole file into memory that counts as the process's own.
_HEADER = "np"
_UNQUANTISED = "take the checkpoint in float16, bfloat16 or float32"

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

    with _damage_named(file), safe_open(file, framework=_HEADER) as tensors:
        return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118


def types(file: Path) -> dict[str, torch.dtype]:
    """The type of each floating tensor of a safetensors file, by name. No values are read.

    Raises:
        RequestError: the file is cut off or otherwise damaged.
    """
    return {name: _PLAIN[kind] for name, kind in _stored_types(file).items() if kind in _PLAIN}


def refuse_other_types(
    files: Iterable[Path], module: nn.Module, names_of: Callable[[str], Iterable[str]]
) -> None:
    """Refuse weights that are stored as something else than plain floating point, of which a
    library would make numbers: quantised values without their scales, or without imaginary part.

    Args:
        names_of: a tensor's name in a file → what the module may call it.

    Raises:
        RequestError: naming the tensor and its type.
    """
    parameters = {name for name, p in module.named_parameters(remove_duplicate=False)}
    for file in files:
        for name, kind in _stored_types(file).items():
            if kind not in _PLAIN and parameters.intersection(names_of(name)):
                raise RequestError(f"{file}: {name}: is stored as {kind}; {_UNQUANTISED}")


def _stored_types(file: Path) -> dict[str, str]:
    """Name → type as safetensors writes it."""
    from safetensors import safe_open

    with _damage_named(file), safe_open(file, framework=_HEADER) as tensors:
        return {key: str(tensors.get_slice(key).get_dtype()) for key in tensors.keys()}  # noqa: SIM118


def factor_ranks(shapes_of: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The rank of each layer that is stored as ``down.weight`` [r, in] and ``up.weight`` [out, r],
    and not as a weight, by the layer's name. Modules of a model's own may be called so too."""
    ranks = {}
    for key, shape in shapes_of.items():
        name = key.removesuffix(".down.weight")
        up = shapes_of.get(f"{name}.up.weight", ())
        is_pair = name != key and len(shape) == len(up) == 2 and shape[0] == up[1]
        if is_pair and f"{name}.weight" not in shapes_of:
            ranks[name] = shape[0]
    return ranks


def stored_tensors(files: Sequence[Path]) -> Iterator[StoredTensor]:
    """The tensors of safetensors files, read one after another, so that only one of them is in
    memory beside what the caller keeps.

    Raises:
        RequestError: a file is cut off or otherwise damaged.
    """
    from safetensors import safe_open

    with bytes_done.part("reading", bytes_of(file for file in files if file.is_file())):
        for file in files:
            with _damage_named(file), safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                    # A copy: mapped memory is aligned as the file happens to be, and products of
                    # differently aligned matrices differ in the last bit.
                    tensor = tensors.get_tensor(name).clone()
                    bytes_done.done(tensor.nbytes)
                    yield StoredTensor(file, name, tensor)


def ties(module: nn.Module) -> dict[str, str]:
    """Each name of a shared tensor but the first → its first name, in the module's state."""
    first_names: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    firsts = {name: first_names.setdefault(id(tensor), name) for name, tensor in state.items()}
    return {name: first for name, first in firsts.items() if name != first}


def load_strictly(
    module: nn.Module,
    tensors: Iterable[StoredTensor],
    where: Path,
    *,
    hint: str = "",
    tied: Mapping[str, str] | None = None,
) -> None:
    """Fill a module, which may be on "meta". Every tensor must fit into the module, and every
    parameter and persistent buffer must be filled. A tensor that several modules share stays
    shared, and needs to be stored under one of its names only.

    What is shared may be another question in the files than in the module, which was built from a
    configuration: the files' answer counts. Where they hold different tensors under two names of
    one, these come apart.

    torch's ``load_state_dict(assign=True)`` would want all tensors in memory at once and a shared
    one under each of its names, would make several tensors of a shared one, and would not name the
    file of a wrong one.

    Args:
        where: file or directory that an error names when a tensor is missing.
        hint: what an error says about a missing or unknown tensor beside its name.
        tied: `ties` of the module that was stored, which decide in the place of this module's.

    Raises:
        RequestError: a tensor is missing, unknown, of another shape or type, or not finite.
    """
    slots = _slots(module, tied)
    stored: dict[int, str] = {}  # slots of a tensor → the name that filled them
    own: set[str] = set()  # names that came apart from others
    file_of: dict[str, Path] = {}
    for file, name, tensor in tensors:
        other = file_of.setdefault(name, file)
        if other != file:
            raise RequestError(
                f"{file}: {name}: is in {other.name} too; remove the files of the older model"
            )
        group = slots.get(name)
        if group is None:
            raise RequestError(f"{file}: {name}: the model has no such tensor{hint}")
        first = stored.setdefault(id(group), name)
        if first == name:
            _fill(group, tensor, f"{file}: {name}")
        elif not _equal(_held(group[0]), tensor):
            _fill([_apart(module, name, first, file)], tensor, f"{file}: {name}")
            own.add(name)
    missing = [name for name, group in slots.items() if id(group) not in stored and name not in own]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RequestError(f"{where}: its weights lack {missing[0]}{more}{hint}")
    _check_orders(module, where)


def _check_orders(module: nn.Module, where: Path) -> None:
    """Refuse pivots of which one is twice there, or nowhere: an index outside of the layer would
    end the process on a GPU.

    Raises:
        RequestError: naming the tensor.
    """
    for name, low in low_rank_layers(module).items():
        order = low.order.long().cpu() if isinstance(low, PivotLinear) else None
        if order is not None and not torch.equal(order.sort().values, torch.arange(len(order))):
            raise RequestError(f"{where}: {name}.order holds an index twice; make it anew")


def _slots(module: nn.Module, tied: Mapping[str, str] | None) -> dict[str, list[_Slot]]:
    """Under each name of the module's state the slots that hold this tensor. Names of the same
    shared tensor have the very same list.

    Args:
        tied: name → first name, of shared tensors; None: those of the module.
    """
    slots: dict[str, list[_Slot]] = {}
    slots_of: dict[int | str, list[_Slot]] = {}
    persistent = module.state_dict(keep_vars=True).keys()
    for prefix, child in module.named_modules(remove_duplicate=False):
        for key, tensor in [*child._parameters.items(), *child._buffers.items()]:
            name = f"{prefix}.{key}" if prefix else key
            if tensor is not None and name in persistent:
                shared = id(tensor) if tied is None else tied.get(name, name)
                slots[name] = slots_of.setdefault(shared, [])
                slots[name].append((child, key))
    return slots


def _apart(module: nn.Module, name: str, first: str, file: Path) -> _Slot:
    """The slot of one name of a shared tensor alone.

    Raises:
        RequestError: both names lead to the very same module, which can't hold two tensors.
    """
    (owner, key), (other, other_key) = (
        (module.get_submodule(parent), last)
        for parent, _, last in (name.rpartition("."), first.rpartition("."))
    )
    if owner is other and key == other_key:
        raise RequestError(
            f"{file}: {name}: differs from {first}, and the model has one layer under both names"
        )
    return owner, key


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _held(slot: _Slot) -> Tensor:
    owner, key = slot
    return cast(Tensor, owner._parameters.get(key, owner._buffers.get(key)))


def _fill(slots: list[_Slot], tensor: Tensor, where: str) -> None:
    old = _held(slots[0])
    if old.shape != tensor.shape:
        raise RequestError(
            f"{where}: has shape {tuple(tensor.shape)}, the model wants {tuple(old.shape)}"
        )
    if old.is_floating_point() and tensor.dtype not in _PLAIN.values():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise RequestError(f"{where}: is stored as {kind}; {_UNQUANTISED}")
    if tensor.is_meta or tensor.layout != torch.strided:
        raise RequestError(f"{where}: is no dense tensor with values; save the weights anew")
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
        raise RequestError(
            f"{file}: not a whole safetensors file ({one_line(error, 160)})"
        ) from None
