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

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from pelacli.artefact import card, rebuilding, streaming, users_files
from pelacli.errors import RequestError
from pelacli.manifest import document, integrity, low_rank_config
from pelacli.manifest.document import Manifest
from pelacli.models import precision
from pelacli.models.opened import OpenModel
from pelacli.models.weight_files import ties
from pelacli.system import bytes_done, disk, files


def check_output(path: Path, source: str | None = None) -> None:
    """Refuse a path that holds something that is not ours, before any work is done.

    Args:
        source: what the step reads, which is left as it is.

    Raises:
        RequestError: the path exists and is neither an artefact nor an empty directory, or is one
            that can't be put in another's place, or is where the source lies.
    """
    files.check_place(path)
    at = path.resolve()
    if source is not None and Path(source).exists():
        _refuse_source(path, Path(source))
    if at == Path.cwd() or at.is_mount():
        what = "the current directory" if at == Path.cwd() else "a mount point"
        raise RequestError(f"{path}: is {what}, which can't be replaced; name a directory in it")
    if document.is_artefact(path):
        users_files.check(path)
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RequestError(f"{path}: exists and is not an artefact; choose another output")


def _refuse_source(path: Path, source: Path) -> None:
    """Refuse to write where the model is read from, above it, or into its directory, whatever links
    lead there. Who works in the model's directory may name an output in it, where pela writes
    nothing over."""
    if _is_same(path, source):
        raise RequestError(f"{path}: is the model that is read; choose another output")
    if any(_is_same(path, above) for above in source.resolve().parents):
        raise RequestError(f"{path}: {source} lies in it and would go; choose another output")
    worked_in = _is_same(source, Path.cwd()) and not document.is_artefact(source)
    if any(_is_same(source, above) for above in path.resolve().parents) and not worked_in:
        raise RequestError(f"{path}: lies in the model that is read; choose another output")


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same, by names that differ in case or another mount too."""
    return one.exists() and other.exists() and one.samefile(other)


def save(
    opened: OpenModel, manifest: Manifest, path: Path, *, extra: Mapping[str, bytes] | None = None
) -> None:
    """Write an artefact: afterwards the new one is there; before that, the old one. What a user has
    put into its directory is there before and afterwards.

    Raises:
        RequestError: the path holds something else.
        PelaError: the disk refuses.
    """
    check_output(path)
    old = path.resolve()

    def keep_users_files(folder: Path) -> None:
        if document.is_artefact(old):
            users_files.keep(old, folder, users_files.names(old))

    with disk.refusals_named(path), files.replacing(path, finish=keep_users_files) as folder:
        manifest.tied = ties(opened.module)
        write_weights(opened, manifest.tied, folder)
        _stating_layers(opened, manifest).describe(folder)
        for name, content in (extra or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        reading = card.reading_of(opened.config, [*opened.carried])
        text = card.model_card(manifest, reading)
        (folder / card.FILE).write_text(text, encoding="utf-8")
        manifest.files = integrity.files_of(folder)
        (folder / document.FILE).write_text(document.dumps(manifest), encoding="utf-8")


def _stating_layers(opened: OpenModel, manifest: Manifest) -> OpenModel:
    """The model with the low-rank layers of the manifest in its config.json."""
    ranks, form_of = rebuilding.ranks_of(manifest), rebuilding.forms_of(manifest)
    config = low_rank_config.with_layers(opened.config, opened.library, ranks, form_of)
    return replace(opened, config=config)


def write_weights(opened: OpenModel, tied: Mapping[str, str], folder: Path) -> None:
    """Write the model's tensors as safetensors.

    Args:
        tied: `ties` of the module: names under which no tensor is written.
    """
    from huggingface_hub import save_torch_state_dict

    if opened.weights is not None:
        state = opened.module.state_dict()
        kept = {name: value for name, value in state.items() if name not in tied}
        read = opened.weights.read
        streaming.write_weights(kept, lambda n: read(n) if kept[n].is_meta else kept[n], folder)
        return
    storages: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, value in opened.module.state_dict().items():
        if name in tied:  # a shared parameter is stored under its first name
            continue
        tensor = precision.as_stored(name, value, opened.stored).contiguous()
        # Parameters may be views of one memory, which safetensors refuses, or of which it leaves
        # out one: each gets its own.
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor
    size = sum(tensor.nbytes for tensor in tensors.values())
    with bytes_done.looked_at("writing", size, lambda: bytes_done.on_disk(folder)):
        save_torch_state_dict(tensors, folder)
