"""Read an artefact back: build the architecture, apply the plan, load strictly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from pelacli.artefact.rebuilding import read_config, rebuild
from pelacli.errors import RequestError
from pelacli.manifest import digests, document, lookup
from pelacli.manifest.document import Manifest
from pelacli.models import carried, libraries, opening
from pelacli.models.opened import OpenModel


@dataclass
class Artefact:
    """An artefact in memory: the model as opened, and its manifest."""

    opened: OpenModel
    manifest: Manifest

    @property
    def module(self) -> nn.Module:
        return self.opened.module


def load(path: Path) -> Artefact:
    """Read an artefact back.

    Raises:
        RequestError: it is no artefact, or a file of it is damaged or doesn't fit; the message
            names the file and the tensor.
    """
    manifest = document.read(path)
    adapter = libraries.library(manifest.library)
    config = read_config(path)
    module = rebuild(path, manifest)
    _load_strictly(module, path)
    module.eval()
    opened = OpenModel(
        module,
        str(path),
        manifest.library,
        config,
        carried.carried(path),
        manifest.source,
        adapter.inputs(module, path),
        adapter.head(module),
    )
    return Artefact(opened, manifest)


def open(ref: str, **how: Any) -> tuple[OpenModel, Manifest | None]:
    """Open whatever a user may name: an artefact, a run directory (its last step), or a model.

    Args:
        how: for a model, the keyword arguments of `models.open`.

    Returns:
        (the opened model, its manifest where it is an artefact).
    """
    path = lookup.latest(Path(ref))
    if path is None:
        return opening.open(ref, **how), None
    if how.get("weights", "pretrained") != "pretrained":
        raise RequestError(f"{ref}: is an artefact and has its weights; leave --weights out")
    artefact = load(path)
    return artefact.opened, artefact.manifest


def input_digest(source: str, opened: OpenModel) -> str:
    """What identifies a step's input: its weights' digest; for random weights, their description.

    Args:
        source: what was opened; an artefact is identified by its own weights, not its origin's.
    """
    path = lookup.latest(Path(source))
    if path is not None:
        return digests.weights_digest(path)
    return opened.source.digest or f"{opened.source.architecture}:{opened.source.weights}"


def _load_strictly(module: nn.Module, path: Path) -> None:
    """Fill a module on "meta" from the artefact's files.

    Not by ``load_state_dict(assign=True)``: that wants all tensors in memory at once, makes several
    of one that is tied, and does not name the file of a wrong one.
    """
    from safetensors import SafetensorError, safe_open

    owners: dict[str, list[tuple[nn.Module, str]]] = {}
    group_of: dict[int, list[tuple[nn.Module, str]]] = {}
    persistent = module.state_dict(keep_vars=True).keys()
    for prefix, child in module.named_modules(remove_duplicate=False):
        for key, tensor in [*child._parameters.items(), *child._buffers.items()]:
            name = f"{prefix}.{key}" if prefix else key
            if tensor is not None and name in persistent:
                group = group_of.setdefault(id(tensor), [])
                group.append((child, key))
                owners[name] = group
    filled: set[int] = set()
    for file in digests.weight_files(path):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                    group_or_none = owners.get(name)
                    if group_or_none is None:
                        raise RequestError(f"{file}: {name}: the model has no such tensor")
                    # A copy: mapped memory is aligned as the file happens to be, and products of
                    # differently aligned matrices differ in the last bit.
                    tensor = tensors.get_tensor(name).clone()
                    _fill(group_or_none, tensor, f"{file}: {name}")
                    filled.add(id(group_or_none))
        except (SafetensorError, OSError) as error:
            raise RequestError(f"{file}: not a whole safetensors file ({error})") from None
    missing = [name for name, group in owners.items() if id(group) not in filled]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RequestError(f"{path}: its safetensors lack {missing[0]}{more}")


def _fill(owners: list[tuple[nn.Module, str]], tensor: Tensor, where: str) -> None:
    child, key = owners[0]
    old = cast(Tensor, child._parameters.get(key, child._buffers.get(key)))
    if old.shape != tensor.shape:
        raise RequestError(
            f"{where}: has shape {tuple(tensor.shape)}, the model wants {tuple(old.shape)}"
        )
    if isinstance(old, nn.Parameter):
        if not tensor.isfinite().all():
            raise RequestError(f"{where}: holds values that are not finite; make the artefact anew")
        new = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        for owner, name in owners:
            owner._parameters[name] = new
    else:
        for owner, name in owners:
            owner._buffers[name] = tensor
