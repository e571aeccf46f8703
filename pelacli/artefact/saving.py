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

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pelacli.artefact import card
from pelacli.errors import PelaError, RequestError
from pelacli.lowrank import replace
from pelacli.manifest import document
from pelacli.manifest.document import Manifest
from pelacli.models import heads, libraries
from pelacli.models.opened import OpenModel
from pelacli.system import files


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
        if document.is_artefact(path) or not any(path.iterdir()):
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
        with files.replacing(path) as folder:
            _write_weights(opened.module, folder)
            opened.describe(folder)
            for name, content in (extra or {}).items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            (folder / document.FILE).write_text(document.dumps(record), encoding="utf-8")
            text = card.model_card(record)
            (folder / "README.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise PelaError(f"{path}: can't be written: {error.strerror or error}") from None


def check_readable(opened: OpenModel, record: Manifest) -> None:
    """Refuse a module that `load` could not read back from what `save` would write: where somebody
    has exchanged a layer, config.json may build another one in its place.

    The network is built once more from its description, without the weights' values.

    Raises:
        RequestError: naming the first layer that would not come back.
    """
    for name, parameter in opened.module.named_parameters():
        if not parameter.isfinite().all():
            raise RequestError(f"{opened.ref}: {name} holds values that are not finite")
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        opened.describe(Path(folder))
        try:
            rebuilt = _without_weights(Path(folder), record)
        except RequestError as error:
            reason = str(error).replace(f"{folder}/", "").replace(folder, opened.ref)
            raise RequestError(f"{opened.ref}: could not be read back: {reason}") from None
    difference = _other_tensors(opened.module, rebuilt) or _other_class(opened.module, rebuilt)
    if difference is not None:
        raise RequestError(
            f"{opened.ref}: could not be read back: {difference}; change the configuration with "
            "the layer (model.config of transformers, reset_classifier of timm)"
        )


def _without_weights(path: Path, record: Manifest) -> nn.Module:
    """The low-rank architecture that config.json and the record describe."""
    try:
        module: nn.Module = libraries.library(record.library).rebuild(path)
    except RequestError:
        raise
    except Exception as error:  # the libraries raise whatever their builders raise
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise RequestError(f"{path / 'config.json'}: can't be rebuilt from it: {line}") from None
    ranks = {layer.name: layer.rank for layer in record.layers if layer.rank is not None}
    replace.replace_empty(module, ranks)
    return module


def _other_tensors(module: nn.Module, rebuilt: nn.Module) -> str | None:
    """The first tensor that the module and the one rebuilt from its description do not share."""
    ours, theirs = (m.state_dict(keep_vars=True) for m in (module, rebuilt))
    for name, tensor in ours.items():
        if name not in theirs:
            return f"config.json builds no {name}"
        shape, built = tuple(tensor.shape), tuple(theirs[name].shape)
        if shape != built:
            return f"{name} has shape {shape}, and config.json builds {built}"
    for name in theirs:
        if name not in ours:
            return f"config.json builds {name}, and the model has no such tensor"
    for first, *others in _ties(theirs):
        for name in others:
            if ours[name] is not ours[first] and not torch.equal(ours[name], ours[first]):
                return f"config.json ties {name} to {first}, and here they differ"
    for first, *others in _ties(ours):
        for name in others:
            if theirs[name] is not theirs[first]:
                return f"{name} is tied to {first}, and config.json does not tie them"
    return None


def _ties(state: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of each tensor that has several."""
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _other_class(module: nn.Module, rebuilt: nn.Module) -> str | None:
    """The first innermost part whose class is another one in the rebuilt module: activations have
    no tensors to tell them apart. Parts that hold others are passed over, since some models
    exchange them while they run (BigBird its attention, for short texts)."""
    built = dict(rebuilt.named_modules())
    for name, part in module.named_modules():
        other = built.get(name, part)
        if any(True for m in (part, other) for _ in m.children()):
            continue
        if type(part) is not type(other) and not _equal_in_eval_mode(part, other):
            kinds = type(part).__name__, type(other).__name__
            return f"{name} is {kinds[0]}, and config.json builds {kinds[1]}"
    return None


def _equal_in_eval_mode(part: nn.Module, other: nn.Module) -> bool:
    """Whether two parts of different classes differ in training alone: dropout and its absence, or
    two kinds of batch norm (synchronised, frozen)."""
    normed = all("running_mean" in m._buffers for m in (part, other))
    return normed or all(heads.is_idle(m) for m in (part, other))


def _write_weights(module: nn.Module, folder: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # a shared parameter is stored under its first name
            seen.add(id(tensor))
            tensors[name] = tensor.detach().contiguous()
    save_torch_state_dict(tensors, folder)
