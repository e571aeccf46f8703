"""The directory that every step reads and writes: save and load, atomically, by safetensors.

::

    model.safetensors   (sharded with an index past the usual limit)
    config.json         what timm or transformers need to rebuild the architecture
    …                   processors and tokenizers, carried over
    pela.json           the manifest
    README.md           a model card
    spectra.safetensors what the plan was made from, where `pela decompose` made it

Read back by building the architecture without memory for its weights, applying the plan, and
loading strictly. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from pelacli import atomic, card, lowrank, manifest, models, rundir
from pelacli.errors import PelaError, RequestError
from pelacli.manifest import Manifest
from pelacli.models import OpenModel


@dataclass
class Artefact:
    """An artefact in memory: the model as opened, and its manifest."""

    opened: OpenModel
    manifest: Manifest

    @property
    def module(self) -> nn.Module:
        return self.opened.module


def check_output(path: Path) -> None:
    """Refuse a path that holds something that is not ours, before any work is done.

    Raises:
        RequestError: the path exists and is neither an artefact nor an empty directory, or is one
            that can't be put in another's place.
    """
    at = path.resolve()
    if at == Path.cwd() or at.is_mount():
        what = "the current directory" if at == Path.cwd() else "a mount point"
        raise RequestError(f"{path}: is {what}, which can't be replaced; name a directory in it")
    if path.is_dir():
        if manifest.is_artefact(path) or not any(path.iterdir()):
            return
        raise RequestError(f"{path}: exists and is not an artefact; choose another output")
    if path.exists():
        raise RequestError(f"{path}: exists and is not an artefact; choose another output")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise RequestError(
            f"{path}: {above.name} is a file, not a directory; choose another output"
        )


def save(
    opened: OpenModel, record: Manifest, path: Path, *, extra: Mapping[str, bytes] | None = None
) -> None:
    """Write an artefact: afterwards the new one is there; before that, the old one.

    Raises:
        RequestError: the path holds something else.
        PelaError: the disk refuses.
    """
    check_output(path)
    try:
        with atomic.replacing(path) as folder:
            _write_weights(opened.module, folder)
            for name, content in {**opened.carried, **(extra or {})}.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            config = json.dumps(opened.config, indent=2) + "\n"
            (folder / "config.json").write_text(config, encoding="utf-8")
            (folder / manifest.FILE).write_text(manifest.dumps(record), encoding="utf-8")
            text = card.model_card(record)
            (folder / "README.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise PelaError(f"{path}: can't be written: {error.strerror or error}") from None


def load(path: Path) -> Artefact:
    """Read an artefact back.

    Raises:
        RequestError: it is no artefact, or a file of it is damaged or doesn't fit; the message
            names the file and the tensor.
    """
    record = manifest.read(path)
    adapter = models.library(record.library)
    config = _config(path)
    try:
        module: nn.Module = adapter.rebuild(path)
    except RequestError:
        raise
    except Exception as error:  # the libraries raise whatever their builders raise
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise RequestError(f"{path / 'config.json'}: can't be rebuilt from it: {line}") from None
    ranks = {layer.name: layer.rank for layer in record.layers if layer.rank is not None}
    lowrank.replace_empty(module, ranks)
    _load_strictly(module, path)
    module.eval()
    opened = OpenModel(
        module,
        str(path),
        record.library,
        config,
        models.carried(path),
        record.source,
        adapter.inputs(module, path),
        adapter.head(module),
    )
    return Artefact(opened, record)


def open(ref: str, **how: Any) -> tuple[OpenModel, Manifest | None]:
    """Open whatever a user may name: an artefact, a run directory (its last step), or a model.

    Args:
        how: for a model, the keyword arguments of `models.open`.

    Returns:
        (the opened model, its manifest where it is an artefact).
    """
    path = rundir.latest(Path(ref))
    if path is None:
        return models.open(ref, **how), None
    if how.get("weights", "pretrained") != "pretrained":
        raise RequestError(f"{ref}: is an artefact and has its weights; leave --weights out")
    found = load(path)
    return found.opened, found.manifest


def input_digest(source: str, opened: OpenModel) -> str:
    """What identifies a step's input: its weights' digest; for random weights, their description.

    Args:
        source: what was opened; an artefact is identified by its own weights, not its origin's.
    """
    path = rundir.latest(Path(source))
    if path is not None:
        return manifest.weights_digest(path)
    return opened.source.digest or f"{opened.source.architecture}:{opened.source.weights}"


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{file}: not JSON ({error}); make the artefact anew") from None
    if not isinstance(config, dict):
        raise RequestError(f"{file}: not a configuration; make the artefact anew")
    return config


def _write_weights(module: nn.Module, folder: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # a shared parameter is stored under its first name
            seen.add(id(tensor))
            tensors[name] = tensor.detach().contiguous()
    save_torch_state_dict(tensors, folder)


def _load_strictly(module: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    places: dict[str, list[tuple[nn.Module, str]]] = {}
    group_of: dict[int, list[tuple[nn.Module, str]]] = {}
    persistent = module.state_dict(keep_vars=True).keys()
    for prefix, child in module.named_modules(remove_duplicate=False):
        for key, tensor in [*child._parameters.items(), *child._buffers.items()]:
            name = f"{prefix}.{key}" if prefix else key
            if tensor is not None and name in persistent:
                group = group_of.setdefault(id(tensor), [])
                group.append((child, key))
                places[name] = group
    filled: set[int] = set()
    for file in manifest.weight_files(path):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                    group_or_none = places.get(name)
                    if group_or_none is None:
                        raise RequestError(f"{file}: {name}: the model has no such tensor")
                    # A copy: mapped memory is aligned as the file happens to be, and products of
                    # differently aligned matrices differ in the last bit.
                    tensor = tensors.get_tensor(name).clone()
                    _fill(group_or_none, tensor, f"{file}: {name}")
                    filled.add(id(group_or_none))
        except (SafetensorError, OSError) as error:
            raise RequestError(f"{file}: not a whole safetensors file ({error})") from None
    missing = [name for name, group in places.items() if id(group) not in filled]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RequestError(f"{path}: its safetensors lack {missing[0]}{more}")


def _fill(places: list[tuple[nn.Module, str]], tensor: Tensor, where: str) -> None:
    child, key = places[0]
    old = cast(Tensor, child._parameters.get(key, child._buffers.get(key)))
    if old.shape != tensor.shape:
        raise RequestError(
            f"{where}: has shape {tuple(tensor.shape)}, the model wants {tuple(old.shape)}"
        )
    if isinstance(old, nn.Parameter):
        if not tensor.isfinite().all():
            raise RequestError(f"{where}: holds values that are not finite; make the artefact anew")
        new = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        for place, name in places:
            place._parameters[name] = new
    else:
        for place, name in places:
            place._buffers[name] = tensor
